"""Fit the calibration of open-set search (`measures.search`) on the dev split.

Queries are recordings of known and of out-of-set speakers (`training.evaluation.queries`); the exemplars are the clean
ones. Each trial compares a query with the best of one, two or three exemplars of a speaker, from other recordings.

* The log-likelihood ratio is a logistic regression of "same speaker" on the cosine and the terms of the quality, both
  classes with the same weight (Brümmer and du Preez, "Application-independent evaluation of speaker detection",
  Computer Speech and Language 20, 2006).
* Several exemplars raise an impostor's best cosine by a multiple of the logarithm of their number; the ratio takes that
  back.
* Location and spread of impostors: least squares, and quantile regression (Koenker and Bassett, Econometrica 1978) at
  `TAIL`.
* The best of N impostors: `training.evaluation.maxima`.
* The margin: leads of wrong speakers who reach the threshold fall exponentially.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from speakerlens.measures.search import SearchCalibration, Terms
from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, Corpus
from speakerlens.training.evaluation.intervals import wilson
from speakerlens.training.evaluation.maxima import best_of
from speakerlens.training.evaluation.predictions import FEWEST_OUT_OF_SET
from speakerlens.training.evaluation.queries import Queries, embed_recordings, join_clips
from speakerlens.training.evaluation.trials import Array, Trials, compare, exemplars_of, tested_queries, without_talkers
from speakerlens.training.model.network import SpeakerNetwork

KNOTS_DB = (0.0, 10.0, 20.0)
GALLERIES = (1, 2, 5, 10, 20, 50, 100, 300, 1000, 3000, 10_000, 100_000, 1_000_000)
TAIL = 0.975
"""Quantile of impostors that the spread is fitted at."""
SILENT_MISLABELS = 1 / 750
"""Share of genuine queries that may be given another speaker's name."""
LEAST_SEEN = 0.02
"""Share of the queries that may lie outside each limit of what the calibration saw."""
LEAST_SPEECH_S = 0.1
"""Speech that a query without any counts as: its logarithm is a term of the quality."""
BANDS_DB = (
    ("SNR of 20 dB or more", 20.0, 100.0),
    ("SNR 10 to 20 dB", 10.0, 20.0),
    ("SNR 0 to 10 dB", 0.0, 10.0),
    ("SNR below 0 dB", -100.0, 0.0),
)
BANDS_S = (("below 1 s of speech", 0.0, 1.0), ("1 to 2 s of speech", 1.0, 2.0), ("2 s of speech or more", 2.0, 1e6))
FEWEST_LEADS = 10
"""Wrong speakers with a lead, below which they say nothing of its mean."""
OUTLOOK_GALLERY = 10
"""Speakers in the gallery that the shares of missed queries hold for."""
ROUNDING = 0.05
RIDGE, LOGISTIC_RIDGE = 1e-3, 1e-5

# Of known speakers and of each speaker's recordings: the cost grows with them, the figures change little.
_MOST_KNOWN, _MOST_RECORDINGS, _MOST_OUT_OF_SET = 40, 2, 80

METHOD = (
    "recordings of dev speakers cut to 1, 2 and 4 s, clean, under each kind of interference at 20 to -5 dB in turn, "
    "and in a telephone's band if the network was trained on it, against the best of 1 to 3 clean exemplars; "
    "logistic regression of the same speaker on cosine, estimated SNR, "
    "seconds of speech and exemplars; thresholds: quantiles of the best of N impostors of out-of-set speakers, over "
    "subsets of the speakers, beyond them by a normal tail; margin: exponential leads of wrong speakers, one wrong "
    "name in 750 queries"
)


def calibrate_search(
    network: SpeakerNetwork, corpus: Corpus, speakers: Sequence[str], false_alarm: float, telephone: bool = False
) -> dict[str, Any] | None:
    """Return the `search` section of the bundle; None with too few out-of-set speakers in the dev split.

    Args:
        network: in evaluation mode, on any device.
        corpus: its dev split is used.
        speakers: that the network was trained on; may be none.
        false_alarm: share of out-of-set queries that may reach the threshold, between 0 and 1.
        telephone: whether the network was trained on telephone speech. Then the queries include it; else a query in a
            telephone's band is narrower than what the calibration saw.

    Raises:
        UserError: a file cannot be read.
    """
    known = [clip for clip in corpus.utterances("dev") if clip.speaker in speakers]
    out_of_set = [
        clip
        for clip in (*corpus.utterances("dev"), *corpus.interference("speech", "dev"))
        if clip.speaker is not None and clip.speaker not in speakers and clip.duration >= SHORTEST_UTTERANCE
    ]
    names = sorted({str(clip.speaker) for clip in out_of_set})
    if len(names) < FEWEST_OUT_OF_SET or not false_alarm:
        return None
    chosen = sorted({str(clip.speaker) for clip in known})
    chosen = chosen[:: max(1, -(-len(chosen) // _MOST_KNOWN))]
    recordings = [
        *join_clips([clip for clip in known if clip.speaker in chosen], _MOST_RECORDINGS),
        *join_clips(out_of_set, max(_MOST_RECORDINGS, _MOST_OUT_OF_SET // len(names))),
    ]
    queries = embed_recordings(network, corpus, "dev", recordings, telephone=telephone)
    return fit_search(queries, names, false_alarm)


def fit_search(queries: Queries, out_of_set: Sequence[str], false_alarm: float) -> dict[str, Any] | None:
    """Return the `search` section for some queries; None where the cosines do not tell speakers apart.

    Args:
        queries: clean and corrupted; the longest clean piece of each recording is an exemplar.
        out_of_set: names of speakers that the network was not trained on; all others are known.
        false_alarm: share of out-of-set queries whose best impostor may reach the threshold.
    """
    strange = np.isin(queries.speakers, out_of_set)
    trials = without_talkers(compare(queries, exemplars_of(queries)), queries, out_of_set)
    seen = np.maximum(np.quantile(queries.speech_s, [LEAST_SEEN, 1 - LEAST_SEEN]), LEAST_SPEECH_S)
    terms = Terms(KNOTS_DB, *seen.tolist())
    if not terms.least_s < terms.most_s:
        return None
    tried = np.isfinite(trials.cosines)
    # A pair of two known speakers, whom the network has learned to separate, is no impostor's.
    impostor = tried & ~trials.same & (strange[:, None] | np.isin(trials.speakers, out_of_set))
    single = trials.sizes == 1
    genuine, others = (kind[:, single] for kind in (tried & trials.same, impostor))
    if not genuine.any() or not others[strange].any():
        return None
    cosines, features = trials.cosines[:, single], terms.of(queries.speech_s, queries.estimated_db)[:, :-1]
    ratio = _logistic(cosines, features, genuine, others, queries.speakers)
    if ratio is None:
        return None
    slope, offset = ratio
    shift = _exemplar_shift(trials, impostor)
    location, spread = _impostors(cosines, features, others)
    standard = (cosines - (features @ location)[:, None]) / (features @ spread)[:, None]
    asked = np.flatnonzero(strange & others.any(axis=1))
    rows = [standard[row][others[row]] for row in asked]
    maxima = np.maximum.accumulate(best_of(rows, queries.speakers[asked], GALLERIES, false_alarm))
    section = {
        "false_alarm": false_alarm,
        "strangers": "held-out speakers",
        "speakers": len(out_of_set),
        "utterances": len(np.unique(queries.recordings[strange])),
        "snr_knots_db": list(terms.knots_db),
        "speech_range_s": [terms.least_s, terms.most_s],
        "slope": [*slope.tolist(), 0.0],
        "offset": [*offset.tolist(), -shift * float(np.mean(features @ slope))],
        "location": [*location.tolist(), shift],
        "spread": [*spread.tolist(), 0.0],
        "maxima": {"galleries": list(GALLERIES), "quantiles": maxima.tolist()},
        "margin": {"base": 0.0, "growth": 0.0},
        "limits": _limits(queries),
        "outlook": [],
        "method": METHOD,
    }
    section["margin"] = _margin(SearchCalibration.from_section(section), queries, trials, out_of_set)
    section["outlook"] = _outlook(SearchCalibration.from_section(section), queries, trials, out_of_set)
    return section


def _exemplar_shift(trials: Trials, impostor: NDArray[np.bool_]) -> float:
    """Return by how much the best of E exemplars raises an impostor's cosine, by ln E; of speakers with several."""
    gains, logarithms = [], []
    for speaker in np.unique(trials.speakers[trials.sizes > 1]):
        own = trials.speakers == speaker
        means = {
            int(size): float(trials.cosines[:, columns][impostor[:, columns]].mean())
            for size in np.unique(trials.sizes[own])
            if impostor[:, columns := own & (trials.sizes == size)].any()
        }
        if 1 in means:
            gains += [means[size] - means[1] for size in means if size > 1]
            logarithms += [math.log(size) for size in means if size > 1]
    squares = float(np.dot(logarithms, logarithms))
    return max(float(np.dot(gains, logarithms)) / squares, 0.0) if squares else 0.0


def _logistic(
    cosines: Array, features: Array, genuine: NDArray[np.bool_], impostor: NDArray[np.bool_], speakers: NDArray[np.str_]
) -> tuple[Array, Array] | None:
    """Return slope and offset of the log-likelihood ratio, by the features [n, terms] of each query.

    Each class, and within it each genuine speaker, has the same weight. The slope is constant where it would not be
    positive at some quality otherwise; None if it is not positive even so.
    """
    chosen = genuine | impostor
    rows = np.nonzero(chosen)[0]
    label = np.where(genuine[chosen], 1.0, -1.0)
    names, of = np.unique(speakers, return_inverse=True)
    own = np.bincount(of, weights=genuine.sum(axis=1), minlength=len(names))
    weight = np.where(label > 0, 1.0 / np.maximum(own, 1.0)[of][rows], 1.0)
    for side in (label > 0, label < 0):
        weight[side] /= 2 * weight[side].sum()
    parts, values = features[rows], cosines[chosen][:, None]
    count = parts.shape[1]
    found = _fit_logistic(np.concatenate([parts * values, parts], axis=1), label, weight)
    if _positive(found[:count], features):
        return found[:count], found[count:]
    found = _fit_logistic(np.concatenate([values, parts], axis=1), label, weight)
    constant = np.append(np.full(count - 1, found[0]), 0.0)
    return (constant, found[1:]) if found[0] > 0 else None


def _positive(weights: Array, features: Array) -> bool:
    """Return whether weights are positive at each knot and both ends of the seconds."""
    ends = features[:, -1].min(), features[:, -1].max()
    return bool(min(weights[:-1]) + min(weights[-1] * end for end in ends) > 0)


def _fit_logistic(inputs: Array, label: Array, weight: Array) -> Array:
    """Return the weights with the least logistic loss, with a small ridge; label is 1 or -1."""

    def loss(weights: Array) -> tuple[float, Array]:
        signed = label * (inputs @ weights)
        gradient = -(weight * label * scipy.special.expit(-signed)) @ inputs
        value = float(weight @ np.logaddexp(0.0, -signed)) + 0.5 * LOGISTIC_RIDGE * float(weights @ weights)
        return value, gradient + LOGISTIC_RIDGE * weights

    start = np.zeros(inputs.shape[1])
    return np.asarray(scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x)


def _impostors(cosines: Array, features: Array, impostor: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return location and spread of impostors' cosines: their mean, and their quantile `TAIL` above it.

    The spread is in units of a normal deviation, and at least a tenth of the deviation everywhere.
    """
    parts, values = features[np.nonzero(impostor)[0]], cosines[impostor]
    location = np.linalg.lstsq(parts, values, rcond=None)[0].astype(np.float64)
    residual = values - parts @ location
    deviation = max(float(residual.std()), 1e-4)
    scaled, level = residual / deviation, float(scipy.special.ndtri(TAIL))

    def loss(weights: Array) -> tuple[float, Array]:
        # The pinball loss, rounded at its corner so that it has a gradient; drawn to a constant spread.
        gap = (scaled - parts @ weights * level) / ROUNDING
        value = float(np.mean(TAIL * gap + np.logaddexp(0.0, -gap))) * ROUNDING
        gradient = -(level * (TAIL - scipy.special.expit(-gap))) @ parts / len(gap)
        off = weights - np.append(np.full(len(weights) - 1, weights[:-1].mean()), 0.0)
        return value + RIDGE * float(off @ off), gradient + 2 * RIDGE * off

    start = np.append(np.ones(parts.shape[1] - 1), 0.0)
    found = np.asarray(scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x)
    enough = _positive(found - np.append(np.full(len(found) - 1, 0.1), 0.0), features)
    return location, deviation * (found if enough else start)


def _margin(
    calibration: SearchCalibration, queries: Queries, trials: Trials, out_of_set: Sequence[str]
) -> dict[str, float]:
    """Return the margin that gives at most `SILENT_MISLABELS` of the genuine queries a wrong name.

    The threshold rises with the gallery, so that as many wrong speakers reach it in any: the margin needs no growth.
    Known and out-of-set speakers have a tail each, and a weight by their number.
    """
    tested = tested_queries(calibration, queries, trials)
    names = queries.speakers[tested.rows]
    strange = np.isin(names, out_of_set)
    wrong = (tested.rivals > tested.own) & (tested.rivals >= tested.thresholds)
    leads = tested.rivals - np.maximum(tested.seconds, tested.own)
    tails: list[tuple[float, float]] = []
    for group in (strange, ~strange):
        if group.any():
            found = leads[group & wrong]
            # With few wrong ones, the lead of the best impostor over the second stands for their lead.
            few = len(found) < FEWEST_LEADS
            mean = float((tested.rivals - tested.seconds)[group].mean() if few else found.mean())
            share = max(len(found), 1) / int(group.sum()) * len(np.unique(names[group])) / len(np.unique(names))
            tails.append((share, max(mean, 1e-6)))

    def above(margin: float) -> float:
        return sum(share * math.exp(-margin / mean) for share, mean in tails) - SILENT_MISLABELS

    if not tails or above(0.0) <= 0:
        return {"base": 0.0, "growth": 0.0}
    return {"base": float(scipy.optimize.brentq(above, 0.0, 100 * max(mean for _, mean in tails))), "growth": 0.0}


def _outlook(
    calibration: SearchCalibration, queries: Queries, trials: Trials, out_of_set: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the shares of genuine queries that are not given their speaker's name, by SNR and by speech.

    The gallery has `OUTLOOK_GALLERY` speakers. People that the network was not trained on come first.
    """
    tested = tested_queries(calibration, queries, trials, OUTLOOK_GALLERY)
    trained = ~np.isin(queries.speakers[tested.rows], out_of_set)
    found = (tested.own >= tested.thresholds) & (tested.own - tested.rivals >= calibration.margin())
    snr, speech = queries.estimated_db[tested.rows], queries.speech_s[tested.rows]
    entries = []
    for group, whose in ((~trained, ""), (trained, ", speakers of the training")):
        bands = [(name, group & (snr >= least) & (snr < most)) for name, least, most in BANDS_DB]
        bands += [(name, group & (speech >= least) & (speech < most)) for name, least, most in BANDS_S]
        for name, band in bands:
            if tried := int(band.sum()):
                missed = int((band & ~found).sum())
                low, high = wilson(missed, tried)
                share = missed / tried
                entries.append({"condition": name + whose, "miss": share, "low": low, "high": high, "trials": tried})
    return entries


def _limits(queries: Queries) -> dict[str, float]:
    """Return the least speech, SNR and bandwidth of the queries, but for a share `LEAST_SEEN` of them."""
    speech, snr, bandwidth = (
        float(np.nanquantile(values, LEAST_SEEN))
        for values in (queries.speech_s, queries.estimated_db, queries.bandwidth_hz)
    )
    # The bandwidth is found in steps of 250 Hz.
    return {"speech_s": speech, "snr_db": snr, "bandwidth_hz": max(bandwidth - 250.0, 0.0)}
