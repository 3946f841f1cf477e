"""Whether the best match of a search is the speaker: threshold, margin, and the limits of the calibration.

The scores are cosines with the best exemplar of each speaker. A calibration turns them into log-likelihood ratios, on
which its threshold keeps the promised share of false alarms for this size of gallery. Without one, cosines are all that
can be said: a threshold of another network or another room promises nothing.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.evidence import Evidence
from speakerlens.measures.search import SearchCalibration
from speakerlens.serving.gallery.matrix import Matches


class Decision(StrEnum):
    """What a search found."""

    SPEAKER = "speaker"
    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"
    UNRELIABLE = "unreliable"


class ReasonCode(StrEnum):
    """Why a search names no speaker."""

    BELOW_THRESHOLD = "BELOW_THRESHOLD"
    MARGIN = "MARGIN"
    TOO_LITTLE_SPEECH = "TOO_LITTLE_SPEECH"
    NO_SPEECH = "NO_SPEECH"
    TOO_NOISY = "TOO_NOISY"
    TOO_NARROW = "TOO_NARROW"
    EMPTY_GALLERY = "EMPTY_GALLERY"
    UNCALIBRATED = "UNCALIBRATED"


TEXTS = {
    ReasonCode.BELOW_THRESHOLD: "the best candidate's log-likelihood ratio {value:.2f} is below the threshold "
    "{limit:.2f} for {gallery}",
    ReasonCode.MARGIN: "the best candidate leads the second by {value:.2f}; {gallery} need at least {limit:.2f}",
    ReasonCode.TOO_LITTLE_SPEECH: "{value:.2f} s of speech; the calibration has seen no less than {limit:.2f} s",
    ReasonCode.NO_SPEECH: "no window of the audio holds speech",
    ReasonCode.TOO_NOISY: "SNR {value:.1f} dB; the calibration has seen no less than {limit:.1f} dB",
    ReasonCode.TOO_NARROW: "the sound ends at {value:.0f} Hz; the calibration has seen no less than {limit:.0f} Hz",
    ReasonCode.EMPTY_GALLERY: "no speaker to search is enrolled with this model",
    ReasonCode.UNCALIBRATED: "the model has no calibration for searches, so that cosines are all that can be said",
}


@dataclass(frozen=True)
class SearchReason:
    """A reason with what was measured, and the limit that it does not keep; 0 where the code has none."""

    code: ReasonCode
    value: float = 0.0
    limit: float = 0.0
    gallery: int = 0

    @property
    def text(self) -> str:
        """Return a sentence for people."""
        speakers = f"{self.gallery:,} speaker{'' if self.gallery == 1 else 's'}"
        return TEXTS[self.code].format(value=self.value, limit=self.limit, gallery=speakers)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The matches of a query, ranked.

    Attributes:
        order: places in the matches, best first, [n].
        ratios: log-likelihood ratio of each match, float32 [matches]; zeros without a calibration.
        probabilities: of the best ones, in their order, float64 [n]; zeros without a calibration.
        scores: what the matches are ranked by: the ratios, or the cosines.
    """

    order: NDArray[np.intp]
    ratios: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    scores: NDArray[np.float32]

    @property
    def margin(self) -> float:
        """Return the score of the best match minus that of the second; 0 where there is none."""
        if len(self.order) < 2:
            return 0.0
        return float(self.scores[self.order[0]] - self.scores[self.order[1]])


@dataclass(frozen=True)
class Verdict:
    """The decision, the threshold on the log-likelihood ratio that it used, and why it names no speaker."""

    decision: Decision
    threshold: float
    reasons: tuple[SearchReason, ...]


def ranked(matches: Matches, evidence: Evidence, calibration: SearchCalibration | None, most: int) -> Ranking:
    """Rank the `most` best matches of a query.

    Args:
        matches: of the query.
        evidence: of the query.
        calibration: of the bundle; None ranks by cosines.
        most: at least 2.
    """
    scores = matches.cosines
    ratios = np.zeros(len(scores), np.float32)
    if calibration is not None and len(scores):
        # The ratio is affine in the cosine, and depends on the speaker by the number of exemplars alone.
        counts = np.arange(int(matches.exemplars.max()) + 1)
        bases, ends = (
            calibration.log_likelihood_ratio(np.full(len(counts), cosine), evidence.speech_s, evidence.snr_db, counts)
            for cosine in (0.0, 1.0)
        )
        scores = ratios = (ends - bases).astype(np.float32)[matches.exemplars] * matches.cosines
        ratios += bases.astype(np.float32)[matches.exemplars]
    count = min(most, len(scores))
    best = np.argpartition(-scores, count - 1)[:count] if count else np.zeros(0, np.intp)
    order = best[np.lexsort((best, -scores[best]))]
    return Ranking(order, ratios, _probabilities(ratios, order, calibration), scores)


def decide(
    ranking: Ranking, matches: Matches, evidence: Evidence, speech: bool, calibration: SearchCalibration | None
) -> Verdict:
    """Decide about the best match of a query.

    Args:
        ranking: of the matches.
        matches: of the query.
        evidence: of the query.
        speech: whether any window of it holds speech.
        calibration: of the bundle; None if it has none.
    """
    gallery = len(matches.cosines)
    doubts = [] if speech else [SearchReason(ReasonCode.NO_SPEECH)]
    if calibration is None:
        doubts.append(SearchReason(ReasonCode.UNCALIBRATED))
    elif speech:
        crossed = calibration.reliable(evidence.speech_s, evidence.snr_db, evidence.bandwidth_hz)
        doubts += [SearchReason(ReasonCode(each.code.value), each.value, each.limit) for each in crossed]
    if not gallery:
        return Verdict(Decision.UNKNOWN, 0.0, (SearchReason(ReasonCode.EMPTY_GALLERY), *doubts))
    threshold, found = 0.0, Decision.SPEAKER
    reasons: list[SearchReason] = []
    if calibration is not None:
        ratio = float(ranking.ratios[ranking.order[0]])
        exemplars = float(np.mean(matches.exemplars))
        threshold = calibration.threshold(gallery, evidence.speech_s, evidence.snr_db, exemplars)
        least = calibration.margin(gallery)
        if ratio < threshold:
            found = Decision.UNKNOWN
            reasons.append(SearchReason(ReasonCode.BELOW_THRESHOLD, ratio, threshold, gallery))
        elif gallery > 1 and ranking.margin < least:
            found = Decision.AMBIGUOUS
            reasons.append(SearchReason(ReasonCode.MARGIN, ranking.margin, least, gallery))
    return Verdict(Decision.UNRELIABLE if doubts else found, threshold, (*doubts, *reasons))


def _probabilities(
    ratios: NDArray[np.float32], order: NDArray[np.intp], calibration: SearchCalibration | None
) -> NDArray[np.float64]:
    """Return the probabilities of the matches of `order`, float64 [n]."""
    if calibration is None or not len(order):
        return np.zeros(len(order))
    # The likelihoods of all others add up to that of one candidate, so that a large gallery costs one sum.
    highest = ratios[order[0]]
    weights = np.exp(ratios - highest)
    weights[order] = 0.0
    others = float(highest) + float(np.log(weights.sum(dtype=np.float64) + np.finfo(np.float64).tiny))
    return calibration.probability(np.append(ratios[order], others), len(ratios))[:-1]
