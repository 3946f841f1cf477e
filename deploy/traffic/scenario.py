"""Phases of clean speech and of interference, at a constant or a moving SNR."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

CLEAN = "clean"
DEFAULT = "clean@1.25 noise:20..-5@1.5 babble:0@1 clean@1.25"
GRAMMAR = "KIND[:SNR[..SNR]]@MINUTES, several of them; the SNR in dB moves evenly from the first to the second"

_NUMBER = r"-?\d+(?:\.\d+)?"
_PHASE = re.compile(
    rf"(?P<kind>[a-z+]+)(:(?P<first>{_NUMBER})(\.\.(?P<last>{_NUMBER}))?)?@(?P<minutes>{_NUMBER})",
)


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        kind: of interference, or `CLEAN`.
        first_db: SNR at its beginning; None for `CLEAN`.
        last_db: SNR at its end.
        seconds: its length.
    """

    kind: str
    first_db: float | None
    last_db: float | None
    seconds: float

    def __str__(self) -> str:
        """Return a label: `noise 20 to -5 dB`."""
        if self.first_db is None or self.last_db is None:
            return self.kind
        levels = f"{self.first_db:g}" if self.first_db == self.last_db else f"{self.first_db:g} to {self.last_db:g}"
        return f"{self.kind} {levels} dB"

    def snr_db(self, seconds: float) -> float | None:
        """Return the SNR in dB this many seconds after the start; None without interference."""
        if self.first_db is None or self.last_db is None:
            return None
        return self.first_db + (self.last_db - self.first_db) * min(seconds / self.seconds, 1.0)


@dataclass(frozen=True)
class Scenario:
    """Phases in sequence."""

    phases: Sequence[Phase]

    @property
    def seconds(self) -> float:
        """Return the length in seconds."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def kinds(self) -> set[str]:
        """Return the kinds of interference, without `CLEAN`."""
        return {phase.kind for phase in self.phases} - {CLEAN}

    def spans(self) -> list[tuple[Phase, float, float]]:
        """Return each phase with its beginning and end, in seconds from the beginning of the scenario."""
        bounds = accumulate((phase.seconds for phase in self.phases), initial=0.0)
        return [(phase, begin, end) for phase, (begin, end) in zip(self.phases, pairwise(bounds), strict=True)]

    def at(self, seconds: float) -> tuple[int, float | None]:
        """Return the index of the phase at a time in seconds, and the SNR in dB; the last phase never ends."""
        spans = self.spans()
        place = next((place for place, (_, _, end) in enumerate(spans) if seconds < end), len(spans) - 1)
        phase, begin, _ = spans[place]
        return place, phase.snr_db(seconds - begin)


def parse(text: str, minutes: float | None = None) -> Scenario:
    """Parse `clean@1 noise:20..-5@2.5 babble:0@1`.

    Args:
        text: phases as in `GRAMMAR`.
        minutes: total length that all phases are scaled to; None keeps their lengths.

    Raises:
        ValueError: the text does not follow `GRAMMAR`.
    """
    phases = [_phase(part) for part in text.split()]
    if not phases:
        raise ValueError("a scenario needs a phase")
    length = sum(phase.seconds for phase in phases)
    scale = 1.0 if minutes is None else 60.0 * minutes / length
    return Scenario([Phase(each.kind, each.first_db, each.last_db, each.seconds * scale) for each in phases])


def _phase(text: str) -> Phase:
    found = _PHASE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a phase: {GRAMMAR}")
    kind = found["kind"]
    first = None if found["first"] is None else float(found["first"])
    last = first if found["last"] is None else float(found["last"])
    if (kind == CLEAN) != (first is None):
        raise ValueError(f"{text!r}: {CLEAN} has no SNR, and every kind of interference has one")
    seconds = 60.0 * float(found["minutes"])
    if seconds <= 0:
        raise ValueError(f"{text!r}: a phase has a length")
    return Phase(kind, first, last, seconds)
