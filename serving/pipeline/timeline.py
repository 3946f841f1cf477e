"""Who spoke when: the most likely sequence of speakers for the votes of a recording's windows.

Windows overlap by half, and one that holds two voices, or little speech, often names a third speaker. So the timeline
is the best path of a hidden Markov model over the windows (Viterbi, 1967): a window contributes the logarithm of its
calibrated probabilities, and each change of speaker costs SWITCH_NATS. The path is extended window by window, in memory
that does not grow with them but for the turns, so a stream always knows its current turn. Windows without speech end
a turn and have no speaker. The cost is measured in docs/decisions/0056-timeline.md.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import SAMPLE_RATE

SWITCH_NATS = 4.0
# A window may be wrong altogether: no probability counts as less.
LEAST_PROBABILITY = 1e-3


@dataclass(frozen=True)
class SpeakerTurn:
    """Seconds from the beginning with one speaker; probability and score are means over the turn's windows."""

    start_s: float
    end_s: float
    label: int
    probability: float
    score: float


@dataclass(frozen=True)
class _Closed:
    """A finished turn of a path, in samples at 16 kHz, and the turns before it."""

    before: "_Closed | None"
    turn: SpeakerTurn


class Timeline:
    """The best path that ends in each speaker, with its turns, window by window."""

    def __init__(self) -> None:
        self._cost: NDArray[np.float64] | None = None
        self._closed: NDArray[np.object_] = np.empty(0, object)
        self._start: NDArray[np.float64] = np.empty(0)
        self._sums: NDArray[np.float64] = np.empty((0, 3))
        self._stop: int | None = None
        self._open = False
        self.windows = 0

    def add(
        self,
        start: int,
        stop: int,
        probabilities: NDArray[np.float64],
        scores: NDArray[np.float64],
        weight: float = 1.0,
    ) -> None:
        """Add a window with speech.

        Args:
            start, stop: of the window, in samples from the beginning of the audio.
            probabilities: of each speaker, [speakers].
            scores: that decide whether a speaker is known, of each speaker, [speakers].
            weight: what it counts beside a full window.
        """
        seam = self._seam(start, stop)
        if self._cost is None:
            count = len(scores)
            self._cost, self._closed = np.zeros(count), np.full(count, None, object)
            self._start, self._sums = np.empty(count), np.zeros((count, 3))
        if not self._open:
            self._start[:] = seam
            self._sums[:] = 0
        best = int(self._cost.argmin())
        switched = self._cost > self._cost[best] + SWITCH_NATS
        if switched.any():
            self._closed[switched] = self._close(best, seam) if self._open else self._closed[best]
            self._cost[switched] = self._cost[best] + SWITCH_NATS
            self._start[switched] = seam
            self._sums[switched] = 0
        self._cost -= weight * np.log(np.maximum(probabilities, LEAST_PROBABILITY))
        self._cost -= self._cost.min()
        self._sums += weight * np.column_stack((np.ones(len(scores)), probabilities, scores))
        self._open = True

    def add_pause(self, start: int, stop: int) -> None:
        """Add a window without speech, in samples from the beginning of the audio."""
        seam = self._seam(start, stop)
        if self._open:
            for label in range(len(self._closed)):
                self._closed[label] = self._close(label, seam)
            self._open = False

    def extend(self, stop: int) -> None:
        """Add audio up to `stop` that says nothing: a turn that is going on, or a pause, goes on."""
        self._stop = stop

    def current(self) -> SpeakerTurn | None:
        """Return the current turn, up to the end of the last window; None in a pause."""
        if not self._open or self._cost is None or self._stop is None:
            return None
        return self._turn(int(self._cost.argmin()), self._stop)

    def turns(self) -> tuple[SpeakerTurn, ...]:
        """Return the turns of the best path so far."""
        if self._cost is None:
            return ()
        last, closed = self.current(), self._closed[int(self._cost.argmin())]
        turns = [] if last is None else [last]
        while closed is not None:
            turns.append(closed.turn)
            closed = closed.before
        return tuple(reversed(turns))

    def _seam(self, start: int, stop: int) -> float:
        """Return where the window's share begins: an overlap is split in the middle."""
        seam = 0.0 if self._stop is None else (self._stop + start) / 2
        self._stop = stop
        self.windows += 1
        return seam

    def _close(self, label: int, stop: float) -> _Closed:
        return _Closed(self._closed[label], self._turn(label, stop))

    def _turn(self, label: int, stop: float) -> SpeakerTurn:
        count, probability, score = self._sums[label]
        begin = float(self._start[label])
        return SpeakerTurn(begin / SAMPLE_RATE, stop / SAMPLE_RATE, label, probability / count, score / count)
