"""Where a request's time goes, where several things happen at once.

Each phase notes when it ran. Time is given to one phase only, so that together they are never more than the time that
passed: to computing first, then to decoding and encoding, and to waiting for the device what is left of the time
in which something was waiting. Time spent waiting for a client that streams is nobody's.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Interval = tuple[float, float]


@dataclass(frozen=True)
class Timings:
    """Seconds a query spent in each phase; together nearly all of its time."""

    decode: float
    queue: float
    inference: float
    encode: float


@dataclass
class Stopwatch:
    """Notes intervals on the clock of `time.monotonic`."""

    _decode: list[Interval] = field(default_factory=list)
    _encode: list[Interval] = field(default_factory=list)
    _asked: list[Interval] = field(default_factory=list)
    _inference: list[Interval] = field(default_factory=list)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Notes that the block decodes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._decode = union([*self._decode, (started, time.monotonic())])

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Notes that the block encodes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._encode = union([*self._encode, (started, time.monotonic())])

    def computed(self, queue_s: float, inference_s: float) -> None:
        """Notes that an answer of the device came just now, after this long in its queue and on it."""
        now = time.monotonic()
        self._asked = union([*self._asked, (now - queue_s - inference_s, now)])
        self._inference = union([*self._inference, (now - inference_s, now)])

    def timings(self) -> Timings:
        """How long each phase was, up to now."""
        inference = _length(self._inference)
        decoded = _length(union([*self._inference, *self._decode]))
        encoded = _length(union([*self._inference, *self._decode, *self._encode]))
        everything = _length(union([*self._inference, *self._decode, *self._encode, *self._asked]))
        return Timings(decoded - inference, everything - encoded, inference, encoded - decoded)


def union(intervals: list[Interval]) -> list[Interval]:
    """The same time without overlaps, in order."""
    joined: list[Interval] = []
    for start, stop in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _length(intervals: list[Interval]) -> float:
    return sum(stop - start for start, stop in intervals)
