"""The results of searches."""

from dataclasses import dataclass
from enum import StrEnum

from speakerlens.model_results import Outlook
from speakerlens.results import AudioInfo, Evidence, Explanation, Mismatch, Timings


class Decision(StrEnum):
    """What a search found."""

    SPEAKER = "speaker"
    """The best candidate."""
    UNKNOWN = "unknown"
    """None of the speakers that were searched."""
    AMBIGUOUS = "ambiguous"
    """Two speakers are too close to each other."""
    UNRELIABLE = "unreliable"
    """The audio is outside of what the calibration has seen, or there is none."""


@dataclass(frozen=True)
class SearchReason:
    """Why a search names no speaker."""

    code: str
    """Such as `BELOW_THRESHOLD`, `MARGIN`, `TOO_LITTLE_SPEECH` or `TOO_NOISY`."""
    value: float
    """What was measured; 0 where the code has none."""
    limit: float
    """The limit that it does not keep; 0 where the code has none."""
    text: str
    """A sentence for people."""


@dataclass(frozen=True)
class Candidate:
    """A speaker that was searched."""

    speaker: str
    cosine: float
    """With the best exemplar, -1 to 1."""
    log_likelihood_ratio: float
    """Natural logarithm; 0 without a calibration."""
    probability: float
    """That this speaker is speaking; the rest is that it is none of them. 0 without a calibration."""
    exemplars: int
    """That were compared."""
    mismatch: Mismatch | None
    """Of the audio with the enrolment; None: not known."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SearchAnswer:
    """The decision of one model about some audio."""

    variant: str
    version: int
    decision: Decision
    speaker: str | None
    """None unless the decision is a speaker."""
    candidates: tuple[Candidate, ...]
    """Best first; empty where no speaker is enrolled."""
    margin: float
    """Log-likelihood ratio of the best candidate minus that of the second, or of their cosines without a calibration; 0
    with one candidate."""
    threshold: float | None
    """On the log-likelihood ratio; None without a calibration."""
    false_alarm: float | None
    """Share of other people's utterances that may be given a name; None without a calibration."""
    gallery: int
    """Speakers that were searched."""
    reasons: tuple[SearchReason, ...]
    """Why no speaker is named."""
    explanation: Explanation | None
    """Maps of the cosine with the best exemplar; None unless requested."""
    difference: Explanation | None
    """Maps of that cosine minus that of the second candidate; None unless requested, and with one candidate."""
    outlook: tuple[Outlook, ...]
    """How often enrolled speakers are missed, by condition; empty without a calibration."""

    @property
    def name(self) -> str:
        """Variant and version, such as `act-da@3`."""
        return f"{self.variant}@{self.version}"

    @property
    def summary(self) -> str:
        """The decision and the best candidate, in a line."""
        if not self.candidates:
            return f"{self.decision}: no speaker is enrolled with {self.name}"
        best = self.candidates[0]
        score = f"cosine {best.cosine:.3f}" if self.threshold is None else f"{best.probability:.1%}"
        if self.speaker is not None:
            return f"{self.speaker} {score}"
        codes = ", ".join(reason.code for reason in self.reasons)
        return f"{self.decision} ({codes}); the best candidate is {best.speaker} {score}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name}: {self.summary}>"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SearchResult(SearchAnswer):
    """The answer for one utterance."""

    audio: AudioInfo
    timings: Timings


@dataclass(frozen=True, eq=False)
class SearchWindow:
    """The answer for one window of live audio; times in seconds from its start."""

    start_s: float
    end_s: float
    answer: SearchAnswer | None
    """None: the window holds no speech, and does not count in the answer for the whole."""
    evidence: Evidence
    timings: Timings
