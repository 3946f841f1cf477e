"""Calibrated open-set search: what a cosine to the best exemplar of a speaker says, by gallery, speech and noise.

The log-likelihood ratio is affine in the cosine; its slope and offset depend on the *quality* of the query: seconds of
speech and estimated SNR (calibration with quality measures: Mandasari et al., "Quality measure functions for
calibration of speaker recognition systems in various duration conditions", IEEE TASLP 2013), and on how many exemplars
the best one was chosen from. It rises with the cosine, so that the two order candidates of one query alike.

The best of N impostors is higher than one. The threshold is a quantile of that maximum, so the share of out-of-set
queries that reach it (the false-alarm rate of open-set identification, ISO/IEC 19795-1) stays the same as the gallery
grows. Quantiles are tabulated by N; between entries they are linear in the logarithm of N.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

REFERENCE_SECONDS = 2.0
"""Speech whose logarithm counts as zero in the terms of the quality."""

PRIOR = 0.5
"""Probability, before anything is compared, that the query is of a speaker of the gallery."""


class Limit(StrEnum):
    """Which limit of what the calibration saw is crossed; the names are those of the search reasons."""

    TOO_LITTLE_SPEECH = "TOO_LITTLE_SPEECH"
    TOO_NOISY = "TOO_NOISY"
    TOO_NARROW = "TOO_NARROW"


class Crossed(NamedTuple):
    """A crossed limit: its code, the query's value, and the limit, in seconds, decibels or hertz."""

    code: Limit
    value: float
    limit: float


class Outlook(NamedTuple):
    """How many utterances of enrolled speakers were not found under a condition, with a 95 % interval of the share.

    Attributes:
        condition: in words, such as "SNR 10 to 20 dB".
        miss: share of them, 0 to 1; low, high: its Wilson interval.
        trials: how many were tried.
    """

    condition: str
    miss: float
    low: float
    high: float
    trials: int


@dataclass(frozen=True)
class Terms:
    """What slope, offset, location and spread depend on.

    The weights of each are those of: one value at each SNR of `knots_db`, linear between them and constant outside;
    ln(seconds of speech / 2 s); ln(exemplars).

    Attributes:
        knots_db: estimated SNR in decibels, ascending, at least one.
        least_s: seconds of speech below which nothing changes any more; most_s: above which.
    """

    knots_db: tuple[float, ...]
    least_s: float
    most_s: float

    @property
    def count(self) -> int:
        """The number of weights."""
        return len(self.knots_db) + 2

    def of(self, speech_s: ArrayLike, snr_db: ArrayLike, exemplars: ArrayLike = 1.0) -> Values:
        """Return the terms, float64 [..., count]; arguments broadcast. An SNR of NaN counts as the lowest."""
        seconds, snr, number = np.broadcast_arrays(
            *(np.asarray(each, np.float64) for each in (speech_s, snr_db, exemplars))
        )
        snr = np.where(np.isnan(snr), self.knots_db[0], snr)
        knots = np.stack([np.interp(snr, self.knots_db, row) for row in np.eye(len(self.knots_db))], axis=-1)
        seconds = np.clip(seconds, self.least_s, self.most_s)
        others = [np.log(seconds / REFERENCE_SECONDS), np.log(np.maximum(number, 1.0))]
        return np.concatenate([knots, np.stack(others, axis=-1)], axis=-1)


@dataclass(frozen=True, eq=False)
class SearchCalibration:
    """Calibration of search with one bundle; see the module.

    Attributes:
        false_alarm: share of queries of out-of-set speakers whose best candidate may reach the threshold.
        speakers: out-of-set speakers that it rests on; utterances: of them.
        terms: of slope, offset, location and spread, each float64 [terms.count].
        slope, offset: the log-likelihood ratio (in nats) is slope * cosine + offset.
        location, spread: an impostor's cosine is location + spread * x.
        galleries: ascending, the first is 1, [n]; maxima: the quantile of the greatest x of so many, float64 [n].
        margin_base, margin_growth: the least margin is base + growth * ln(speakers in the gallery), in nats.
        least_speech_s, least_snr_db, least_bandwidth_hz: of the queries that the calibration saw.
        misses: of genuine trials, by condition.
    """

    false_alarm: float
    speakers: int
    utterances: int
    terms: Terms
    slope: Values
    offset: Values
    location: Values
    spread: Values
    galleries: Values
    maxima: Values
    margin_base: float
    margin_growth: float
    least_speech_s: float
    least_snr_db: float
    least_bandwidth_hz: float
    misses: tuple[Outlook, ...]

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> Self:
        """Return the calibration in a `search` section of `bundle.json` that fits its schema.

        Raises:
            ValueError: lengths or orders do not fit, or the ratio would not rise with the cosine; says which.
        """
        terms = Terms(tuple(section["snr_knots_db"]), *section["speech_range_s"])
        if list(terms.knots_db) != sorted(set(terms.knots_db)):
            raise ValueError("snr_knots_db must ascend")
        if terms.least_s > terms.most_s:
            raise ValueError("speech_range_s must ascend")
        weights = {name: _array(section[name], name, terms.count) for name in ("slope", "offset", "location", "spread")}
        for name in ("slope", "spread"):
            if _lowest(weights[name], terms) <= 0 or weights[name][-1] < 0:
                raise ValueError(f"{name} must be positive at every quality")
        galleries = _array(section["maxima"]["galleries"], "maxima.galleries")
        maxima = _array(section["maxima"]["quantiles"], "maxima.quantiles", len(galleries))
        if galleries[0] != 1 or (np.diff(galleries) <= 0).any():
            raise ValueError("maxima.galleries must start with 1 and ascend")
        if (np.diff(maxima) < 0).any():
            raise ValueError("maxima.quantiles must not fall")
        limits, margin = section["limits"], section["margin"]
        return cls(
            false_alarm=section["false_alarm"],
            speakers=section["speakers"],
            utterances=section["utterances"],
            terms=terms,
            **weights,
            galleries=galleries,
            maxima=maxima,
            margin_base=margin["base"],
            margin_growth=margin["growth"],
            least_speech_s=limits["speech_s"],
            least_snr_db=limits["snr_db"],
            least_bandwidth_hz=limits["bandwidth_hz"],
            misses=tuple(Outlook(**each) for each in section["outlook"]),
        )

    def log_likelihood_ratio(
        self, cosine: ArrayLike, speech_s: ArrayLike, snr_db: ArrayLike | None, exemplars: ArrayLike = 1.0
    ) -> Values:
        """Return ln(p(cosine | the same speaker) / p(cosine | another one)), of the cosine's shape.

        Args:
            cosine: between the query and the best of a speaker's exemplars.
            speech_s: net speech of the query, in seconds.
            snr_db: its estimated SNR; None or NaN where there is no estimate.
            exemplars: how many the speaker has.
        """
        terms = self.terms.of(speech_s, _snr(snr_db), exemplars)
        return np.asarray(terms @ self.slope * np.asarray(cosine, np.float64) + terms @ self.offset)

    def cosine_threshold(
        self, gallery: int, speech_s: ArrayLike, snr_db: ArrayLike | None, exemplars: ArrayLike = 1.0
    ) -> Values:
        """Return the cosine that the best of `gallery` impostors reaches in a share `false_alarm` of the queries."""
        terms = self.terms.of(speech_s, _snr(snr_db), exemplars)
        return np.asarray(terms @ self.location + terms @ self.spread * self._maximum(gallery))

    def threshold(self, gallery: int, speech_s: float, snr_db: float | None, exemplars: float = 1.0) -> float:
        """Return the log-likelihood ratio from which the best candidate counts as the speaker.

        Args:
            gallery: speakers searched, at least 1.
            speech_s: as in `log_likelihood_ratio`; snr_db: likewise.
            exemplars: how many a speaker of the gallery has on average.
        """
        cosine = self.cosine_threshold(gallery, speech_s, snr_db, exemplars)
        return float(self.log_likelihood_ratio(cosine, speech_s, snr_db, exemplars))

    def margin(self, gallery: int = 1) -> float:
        """Return the least difference of the best and the second ratio for a decision, in a gallery of that size."""
        return max(self.margin_base + self.margin_growth * math.log(max(gallery, 1)), 0.0)

    def probability(self, ratios: ArrayLike, gallery: int) -> Values:
        """Return the probability of each candidate, float64 [n]; what is left of 1 is that of none of them.

        Every speaker of the gallery is as likely as another, and together as likely as all others.

        Args:
            ratios: log-likelihood ratios of the candidates, [n], all of the gallery or the best of them.
            gallery: speakers searched, at least n.
        """
        values = np.asarray(ratios, np.float64) + math.log(PRIOR / max(gallery, 1))
        none = math.log(1 - PRIOR)
        highest = max(float(values.max(initial=none)), none)
        weights = np.exp(values - highest)
        return np.asarray(weights / (weights.sum() + math.exp(none - highest)))

    def reliable(self, speech_s: float, snr_db: float | None, bandwidth_hz: float) -> list[Crossed]:
        """Return the limits of what the calibration saw that a query crosses; none: its decision is reliable.

        An SNR of None or NaN crosses none.
        """
        values = (
            (Limit.TOO_LITTLE_SPEECH, speech_s, self.least_speech_s),
            (Limit.TOO_NOISY, math.nan if snr_db is None else snr_db, self.least_snr_db),
            (Limit.TOO_NARROW, bandwidth_hz, self.least_bandwidth_hz),
        )
        return [Crossed(*each) for each in values if each[1] < each[2]]

    def outlook(self) -> list[Outlook]:
        """Return the shares of enrolled speakers' utterances that the calibration did not find, by condition."""
        return list(self.misses)

    def _maximum(self, gallery: int) -> float:
        """Return the quantile of the greatest of `gallery` standardised impostors.

        Above the table it grows with the square root of ln N, as the maximum of normal variables does.
        """
        if gallery <= self.galleries[-1]:
            return float(np.interp(math.log(max(gallery, 1)), np.log(self.galleries), self.maxima))
        last = max(math.log(float(self.galleries[-1])), math.log(2.0))
        return float(self.maxima[-1]) + math.sqrt(2 * math.log(gallery)) - math.sqrt(2 * last)


def _snr(snr_db: ArrayLike | None) -> ArrayLike:
    return math.nan if snr_db is None else snr_db


def _array(values: Sequence[float], name: str, count: int | None = None) -> Values:
    if count is not None and len(values) != count:
        raise ValueError(f"{name} has {len(values)} values, not {count}")
    return np.asarray(values, np.float64)


def _lowest(weights: Values, terms: Terms) -> float:
    """Return the least value over all qualities with one exemplar: it is at a knot and an end of the seconds."""
    ends = np.array([terms.least_s, terms.most_s])[:, None]
    return float((terms.of(ends, np.asarray(terms.knots_db)) @ weights).min())
