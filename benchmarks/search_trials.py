"""Measure calibrated search of one network on real speech, for `benchmarks.search`.

Each speaker has one role: *enrolled* are the network's speakers and the outsiders of the train split; the outsiders
of dev and test are divided into those who *calibrate* and those who *test* in several ways; figures are their means.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speakerlens.measures.search import SearchCalibration
from speakerlens.training.checkpoint import Run
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.evaluation.intervals import wilson
from speakerlens.training.evaluation.predictions import predict_split
from speakerlens.training.evaluation.queries import TELEPHONE, Queries, embed_recordings, join_clips, turns
from speakerlens.training.evaluation.search import fit_search
from speakerlens.training.evaluation.trials import TALKED_OVER, exemplars_of
from speakerlens.training.evaluation.verification import calibrate_verification

PROMISED = 0.05
GALLERIES = (10, 30)
SYNTHETIC = 1000
DIVISIONS = 12
"""Ways to divide the outsiders of dev and test into those who calibrate and those who test."""
DRAWS = 12
"""Galleries drawn of each size."""
PUBLISHED = 0.25
"""Cosine from which SpeechBrain's verification with its VoxCeleb ECAPA-TDNN says "same" by default."""
DECIDED, SYNTHETIC_TITLE = ", as decided", ", synthetic"
"""Ends of the titles of tables: of answers that name a speaker, and of galleries that are drawn."""
_OFFSETS = {"known": 0, "enrolled": 100_000, "genuine": 200_000, "calibrate": 300_000, "test": 400_000}

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Voices:
    """All queries of a network: `known` dev recordings, `enrolled` exemplars, `genuine` and outsiders' queries.

    The outsiders of dev and test are there twice: as in an export (`calibrate`), and at all lengths with the test
    split's interference (`test`).
    """

    known: Queries
    enrolled: Queries
    genuine: Queries
    calibrate: Queries
    test: Queries
    outsiders: tuple[str, ...]


def embed_voices(run: Run, corpus: Corpus) -> Voices:
    """Embed the queries of each role."""
    outside = {split: corpus.interference("speech", split) for split in ("train", "dev", "test")}
    named = [clip for split in ("dev", "test") for clip in outside[split] if clip.speaker]
    others = [clip for clip in outside["train"] if clip.speaker]

    def embedded(role: str, clips: Iterable[Any], most: int, split: Any, all_lengths: bool) -> Queries:
        conditions = turns(corpus, split) if all_lengths else None
        found = embed_recordings(run.network, corpus, split, join_clips(clips, most), conditions, run.telephone)
        return Queries(**{**vars(found), "recordings": found.recordings + _OFFSETS[role]})

    known = embedded("known", corpus.utterances("dev"), 2, "dev", False)
    train = exemplars_of(embedded("enrolled", others, 1, "dev", False))
    return Voices(
        known=known,
        enrolled=_joined(exemplars_of(known), train),
        genuine=embedded("genuine", corpus.utterances("test"), 9, "test", True),
        calibrate=embedded("calibrate", named, 12, "dev", False),
        test=embedded("test", named, 8, "test", True),
        outsiders=tuple(sorted({str(clip.speaker) for clip in named})),
    )


def _joined(*parts: Queries) -> Queries:
    return Queries(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


BANDS: tuple[tuple[str, Callable[[Queries], Mask]], ...] = (
    ("all", lambda q: np.ones(len(q), bool)),
    ("clean", lambda q: q.kinds == "clean"),
    ("SNR 15 to 20 dB", lambda q: q.snr_db >= 15),
    ("SNR 5 to 10 dB", lambda q: (q.snr_db >= 5) & (q.snr_db <= 10)),
    ("SNR -5 to 0 dB", lambda q: q.snr_db <= 0),
    ("estimated 20 dB or more", lambda q: q.estimated_db >= 20),
    ("estimated 10 to 20 dB", lambda q: (q.estimated_db >= 10) & (q.estimated_db < 20)),
    ("estimated 0 to 10 dB", lambda q: (q.estimated_db >= 0) & (q.estimated_db < 10)),
    ("estimated below 0 dB", lambda q: q.estimated_db < 0),
    ("1 s", lambda q: q.seconds == 1),
    ("2 s", lambda q: q.seconds == 2),
    ("4 s", lambda q: q.seconds == 4),
    ("noise", lambda q: q.kinds == "noise"),
    ("babble", lambda q: q.kinds == "babble"),
    ("speaker", lambda q: q.kinds == "speaker"),
    ("telephone", lambda q: q.kinds == TELEPHONE.kind),
)


@dataclass(frozen=True, eq=False)
class _Found:
    """Results of queries, [n].

    Attributes:
        best: the best candidate.
        reached: whether it reaches the threshold.
        named: whether the answer names it: the query is within the limits of the calibration, and it leads enough.
        leads: over the second, in nats.
        cosines: of the best.
    """

    best: NDArray[np.str_]
    reached: Mask
    named: Mask
    leads: Array
    cosines: Array


def _search(
    calibration: SearchCalibration, queries: Queries, directions: Array, names: NDArray[np.str_], copied: float | None
) -> _Found:
    """Search one exemplar of each of `names`; `copied` is a threshold on the cosine instead of the calibrated one."""
    cosines = queries.directions @ directions.T
    ratios = calibration.log_likelihood_ratio(cosines, queries.speech_s[:, None], queries.estimated_db[:, None])
    ordered = np.sort(ratios, axis=1)
    highest = cosines.max(axis=1)
    threshold = calibration.cosine_threshold(len(names), queries.speech_s, queries.estimated_db)
    reached = highest >= (threshold if copied is None else copied)
    leads = ordered[:, -1] - ordered[:, -2]
    named = reached & (leads >= calibration.margin(len(names))) & reliable(calibration, queries)
    return _Found(names[cosines.argmax(axis=1)], reached, named, leads, highest)


def reliable(calibration: SearchCalibration, queries: Queries) -> Mask:
    """Return which queries are within the limits of what the calibration saw; others are `UNRELIABLE`."""
    rows = zip(queries.speech_s, queries.estimated_db, queries.bandwidth_hz, strict=True)
    return np.array([not calibration.reliable(*map(float, row)) for row in rows], bool)


class _Table:
    """Means by band: shares of outsiders' queries by speaker, and counts of genuine ones."""

    def __init__(self) -> None:
        self.alarms: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.missed: dict[str, list[float]] = defaultdict(list)
        self.trials: dict[str, int] = {}

    def add_alarms(self, queries: Queries, alarms: NDArray[Any]) -> None:
        for band, inside in BANDS:
            chosen = inside(queries)
            for speaker in np.unique(queries.speakers[chosen]):
                own = chosen & (queries.speakers == speaker)
                self.alarms[band][str(speaker)].append(float(alarms[own].mean()))

    def add_missed(self, queries: Queries, found: Mask) -> None:
        for band, inside in BANDS:
            chosen = inside(queries)
            if chosen.any():
                self.missed[band].append(float((~found[chosen]).mean()))
                self.trials[band] = max(self.trials.get(band, 0), int(chosen.sum()))

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each band: false alarms with a 95 % interval by speakers, misses with Wilson's."""
        rng = np.random.default_rng(0)
        rows = []
        for band, _ in BANDS:
            by_speaker = np.array([np.mean(values) for values in self.alarms[band].values()])
            if not len(by_speaker):
                continue
            resampled = rng.choice(by_speaker, (4000, len(by_speaker))).mean(axis=1)
            low, high = np.quantile(resampled, [0.025, 0.975])
            row = {"band": band, "false_alarm": float(by_speaker.mean()), "low": float(low), "high": float(high)}
            if self.missed[band]:
                miss, trials = float(np.mean(self.missed[band])), self.trials[band]
                row |= {"miss": miss, "trials": trials, "miss_interval": list(wilson(miss * trials, trials))}
            rows.append(row)
        return rows


def measure(run: Run, corpus: Corpus, progress: Callable[[str], None]) -> dict[str, Any]:
    """Return all tables of a network."""
    voices = embed_voices(run, corpus)
    progress("embedded")
    rng = np.random.default_rng(0)
    divisions = list(itertools.combinations(voices.outsiders, len(voices.outsiders) // 2))
    chosen = [divisions[at] for at in rng.choice(len(divisions), min(DIVISIONS, len(divisions)), replace=False)]
    tables: dict[str, _Table] = defaultdict(_Table)
    silent: list[dict[str, Any]] = []
    sections = []
    for calibrating in chosen:
        material = _joined(voices.known, voices.calibrate.select(np.isin(voices.calibrate.speakers, calibrating)))
        section = fit_search(material, calibrating, PROMISED)
        assert section is not None, "the cosines tell speakers apart"
        sections.append(section)
        calibration = SearchCalibration.from_section(section)
        test = voices.test.select(~np.isin(voices.test.speakers, calibrating))
        for size in GALLERIES:
            silent += _galleries(tables, calibration, voices, test, size, rng)
        _one_to_one(tables, calibration, voices, test)
        _unseen(tables, calibration, test)
        _synthetic(tables[f"gallery {SYNTHETIC}{SYNTHETIC_TITLE}"], voices, rng)
    progress("searched")
    predicted = predict_split(run.network, corpus, "dev", run.speakers, lambda: None)
    nominal = calibrate_verification(corpus, predicted, run.network.classes, PROMISED).thresholds[0].threshold
    single = (np.full(len(queries), nominal) for queries in (voices.test, voices.genuine))
    _pairs(tables["Verify, the threshold of the bundle"], voices, voices.test, *single)
    return {
        "promised": PROMISED,
        "divisions": len(chosen),
        "outsiders": list(voices.outsiders),
        "enrolled": len(np.unique(voices.enrolled.speakers)),
        "margin": float(np.mean([each["margin"]["base"] for each in sections])),
        "tables": {name: table.rows() for name, table in tables.items()},
        "silent_mislabels": _silent(silent),
        "normalisation": _normalisation(run, voices, rng),
    }


def _galleries(
    tables: dict[str, _Table], calibration: SearchCalibration, voices: Voices, test: Queries, size: int, rng: Any
) -> list[dict[str, Any]]:
    """Search galleries of a size, with the bundle's thresholds and with copied ones; return what margins buy."""
    everyone = np.unique(voices.enrolled.speakers)
    silent: list[dict[str, Any]] = []
    for _ in range(DRAWS if size < len(everyone) else 1):
        names = np.sort(rng.choice(everyone, min(size, len(everyone)), replace=False))
        first = [int(np.flatnonzero(voices.enrolled.speakers == name)[0]) for name in names]
        directions = voices.enrolled.directions[first]
        genuine = voices.genuine.select(np.isin(voices.genuine.speakers, names))
        verified = float(calibration.cosine_threshold(1, 2.0, 20.0))
        for title, copied in (("", None), (", published threshold", PUBLISHED), (", threshold of one pair", verified)):
            found = _search(calibration, test, directions, names, copied)
            right = _search(calibration, genuine, directions, names, copied)
            hit = right.best == genuine.speakers
            tables[f"gallery {size}{title}"].add_alarms(test, found.reached)
            tables[f"gallery {size}{title}"].add_missed(genuine, hit & right.reached)
            if copied is None:
                tables[f"gallery {size}{DECIDED}"].add_alarms(test, found.named)
                tables[f"gallery {size}{DECIDED}"].add_missed(genuine, hit & right.named)
            own = calibration.margin(size)
            for margin in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, own) if copied is None else (0.0,):
                accepted = right.reached & (right.leads >= margin)
                silent.append(
                    {
                        "gallery": size,
                        "threshold": title.removeprefix(", ") or "calibrated",
                        "margin": -1.0 if margin == own and copied is None else margin,
                        "recall": float((hit & accepted).mean()),
                        "wrong": float((~hit & accepted).sum()),
                        "trials": len(genuine),
                        "false_alarm": float((found.reached & (found.leads >= margin)).mean()),
                    }
                )
    return silent


def _silent(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return wrong names and recall by gallery, threshold and margin; "own" is that of the bundle."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for each in found:
        groups[each["gallery"], each["threshold"], each["margin"]].append(each)
    return [
        {
            "gallery": gallery,
            "threshold": threshold,
            "margin": "own" if margin < 0 else margin,
            "recall": float(np.mean([each["recall"] for each in group])),
            "wrong": int(sum(each["wrong"] for each in group)),
            "trials": int(sum(each["trials"] for each in group)),
            "false_alarm": float(np.mean([each["false_alarm"] for each in group])),
        }
        for (gallery, threshold, margin), group in sorted(groups.items())
    ]


def _pairs(table: _Table, voices: Voices, test: Queries, thresholds: Array, own_thresholds: Array) -> None:
    """Add the share of enrolled speakers whom each outsider's query is taken for, one to one, and misses."""
    enrolled, genuine = voices.enrolled, voices.genuine
    alarms = test.directions @ enrolled.directions.T >= thresholds[:, None]
    table.add_alarms(test, alarms.mean(axis=1))
    first = [int(np.flatnonzero(enrolled.speakers == name)[0]) for name in genuine.speakers]
    own = np.einsum("ij,ij->i", genuine.directions, enrolled.directions[first])
    table.add_missed(genuine, own >= own_thresholds)


def _one_to_one(tables: dict[str, _Table], calibration: SearchCalibration, voices: Voices, test: Queries) -> None:
    thresholds, own = (calibration.cosine_threshold(1, q.speech_s, q.estimated_db) for q in (test, voices.genuine))
    _pairs(tables["gallery 1"], voices, test, thresholds, own)


def _unseen(tables: dict[str, _Table], calibration: SearchCalibration, test: Queries) -> None:
    """Enrol the testing outsiders, whom the network was not trained on: each query against all the others."""
    exemplars = exemplars_of(test)
    names = np.unique(exemplars.speakers)
    first = [int(np.flatnonzero(exemplars.speakers == name)[0]) for name in names]
    queries = test.select(~np.isin(test.kinds, TALKED_OVER) & ~np.isin(test.recordings, exemplars.recordings[first]))
    cosines = queries.directions @ exemplars.directions[first].T
    mine = queries.speakers[:, None] == names
    own, rival = np.where(mine, cosines, -1).max(axis=1), np.where(mine, -1, cosines).max(axis=1)
    size = len(names) - 1
    limit = calibration.cosine_threshold(size, queries.speech_s, queries.estimated_db)
    table = tables[f"gallery {size} of people unknown to the network"]
    table.add_alarms(queries, rival >= limit)
    table.add_missed(queries, (own >= limit) & (own > rival))


def _synthetic(table: _Table, voices: Voices, rng: np.random.Generator) -> None:
    """Calibrate and test on synthetic embeddings: speakers from a normal distribution, deviations of real queries.

    Mean and covariance are those of the real speakers; the deviation of a query is from the mean of its speaker.
    """
    real = _joined(voices.known, voices.calibrate)
    clean = real.select(real.kinds == "clean")
    names = np.unique(clean.speakers)
    means = np.stack([clean.directions[clean.speakers == name].mean(axis=0) for name in names])
    of = np.searchsorted(names, real.speakers)
    outsiders = len(voices.outsiders)
    groups = {"known": len(np.unique(voices.known.speakers)), "out": outsiders // 2, "test": outsiders}
    drawn = rng.multivariate_normal(means.mean(axis=0), np.cov(means.T), sum(groups.values()) + SYNTHETIC)
    made: dict[str, Queries] = {}
    first = 0
    for group, count in groups.items():
        parts = []
        for number in range(count):
            source = real.select(of == rng.integers(len(names)))
            heard = drawn[first + number] + source.directions - means[np.searchsorted(names, source.speakers)]
            changes = {
                "directions": heard / np.linalg.norm(heard, axis=1, keepdims=True),
                "speakers": np.full(len(source), f"{group}{number}"),
                "recordings": source.recordings + 1_000_000 * (first + number),
            }
            parts.append(Queries(**{**vars(source), **changes}))
        made[group], first = _joined(*parts), first + count
    strange = sorted(set(made["out"].speakers.tolist()))
    section = fit_search(_joined(made["known"], made["out"]), strange, PROMISED)
    if section is not None:
        calibration, test = SearchCalibration.from_section(section), made["test"]
        gallery = drawn[first:] / np.linalg.norm(drawn[first:], axis=1, keepdims=True)
        limit = calibration.cosine_threshold(SYNTHETIC, test.speech_s, test.estimated_db)
        table.add_alarms(test, (test.directions @ gallery.T).max(axis=1) >= limit)


def _normalisation(run: Run, voices: Voices, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return recall at 5 % false alarms, thresholds set on the test itself, of cosines and of AS-Norm.

    The cohort are the classifier's weights of the train speakers; "top" are averaged (Matejka et al., "Analysis of
    score normalization in multilingual speaker recognition", Interspeech 2017).
    """
    weights = torch.nn.functional.normalize(run.network.head.state_dict()["weight"].double()).numpy()
    everyone = np.unique(voices.enrolled.speakers)
    results = []
    draws = [np.sort(rng.choice(everyone, 10, replace=False)) for _ in range(DRAWS)]
    for top in (None, 8, 15, len(weights)):
        recalls = []
        for names in draws:
            first = [int(np.flatnonzero(voices.enrolled.speakers == name)[0]) for name in names]
            exemplars = voices.enrolled.directions[first]
            genuine = voices.genuine.select(np.isin(voices.genuine.speakers, names))
            limit = np.quantile(_scores(voices.test.directions, exemplars, weights, top).max(axis=1), 1 - PROMISED)
            scores = _scores(genuine.directions, exemplars, weights, top)
            hit = (names[scores.argmax(axis=1)] == genuine.speakers) & (scores.max(axis=1) >= limit)
            recalls.append([hit.mean(), hit[genuine.kinds == "clean"].mean()])
        means = np.mean(recalls, axis=0)
        title = "cosine" if top is None else f"AS-Norm, top {top}"
        results.append({"score": title, "recall": float(means[0]), "clean": float(means[1])})
    return results


def _scores(queries: Array, exemplars: Array, cohort: Array, top: int | None) -> Array:
    cosines: Array = queries @ exemplars.T
    if top is None:
        return cosines

    def statistics(vectors: Array) -> tuple[Array, Array]:
        nearest = np.sort(vectors @ cohort.T, axis=1)[:, -top:]
        return nearest.mean(axis=1), nearest.std(axis=1) + 0.05

    (mean, deviation), (others, other_deviation) = statistics(queries), statistics(exemplars)
    scores: Array = 0.5 * ((cosines - mean[:, None]) / deviation[:, None] + (cosines - others) / other_deviation)
    return scores
