"""Who spoke when: what overlapping windows say, as stretches of audio."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from speakerlens.serving.bundle import SAMPLE_RATE


@dataclass(frozen=True)
class Vote:
    """The best label of a window, its probability and its logit."""

    label: int
    probability: float
    logit: float


@dataclass(frozen=True)
class WindowVote:
    """A window in samples of 16 kHz, and its vote; None where nobody speaks."""

    start: int
    stop: int
    vote: Vote | None


@dataclass(frozen=True)
class SpeakerTurn:
    """Seconds from the beginning, in which windows agree; probability and logit are their means."""

    start_s: float
    end_s: float
    label: int
    probability: float
    logit: float


def speaker_turns(windows: Sequence[WindowVote]) -> tuple[SpeakerTurn, ...]:
    """Joins neighbouring windows with the same best label, in order; what overlaps is shared half and half."""
    seams = [(before.stop + after.start) / 2 for before, after in pairwise(windows)]
    owned = zip([0.0, *seams], windows, [*seams, float(windows[-1].stop)], strict=True)
    return tuple(
        _stretch(list(group))
        for label, group in groupby(owned, key=lambda each: each[1].vote.label if each[1].vote else None)
        if label is not None
    )


def _stretch(owned: Sequence[tuple[float, WindowVote, float]]) -> SpeakerTurn:
    votes = [window.vote for _, window, _ in owned if window.vote is not None]
    return SpeakerTurn(
        start_s=owned[0][0] / SAMPLE_RATE,
        end_s=owned[-1][2] / SAMPLE_RATE,
        label=votes[0].label,
        probability=sum(vote.probability for vote in votes) / len(votes),
        logit=sum(vote.logit for vote in votes) / len(votes),
    )
