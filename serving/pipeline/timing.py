"""Where a request's time goes, where several things happen at once.

Each phase notes when it ran. Time is given to one phase only, so that together they are never more than the time that
passed: to computing first, then to decoding and encoding, and to waiting for the device what is left of the time
in which something was waiting. Time spent waiting for a client that streams is nobody's.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

Interval = tuple[float, float]

# Intervals of a phase that are kept as they are, and how old one must be to be counted once and for all.
NOTED = 512
RECENT_SECONDS = 10.0


@dataclass(frozen=True)
class Timings:
    """Seconds a query spent in each phase; together nearly all of its time."""

    decode: float
    queue: float
    inference: float
    encode: float


class Stopwatch:
    """Notes intervals on the clock of `time.monotonic`, from any thread, in memory that does not grow with them.

    Args:
        whole: another, of work that this is a part of, which notes the same.
    """

    def __init__(self, whole: "Stopwatch | None" = None) -> None:
        self._whole = whole
        self._lock = threading.Lock()
        # In the order in which time is given away: inference, decode, encode, and what was waited for.
        self._noted: list[list[Interval]] = [[], [], [], []]
        self._settled = [0.0, 0.0, 0.0, 0.0]
        self._horizon = -math.inf

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Notes that the block decodes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._note(1, started, time.monotonic())

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Notes that the block encodes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._note(2, started, time.monotonic())

    def computed(self, queue_s: float, inference_s: float) -> None:
        """Notes that an answer of the device came just now, after this long in its queue and on it."""
        now = time.monotonic()
        self._note(3, now - queue_s - inference_s, now)
        self._note(0, now - inference_s, now)

    def timings(self) -> Timings:
        """How long each phase was, up to now."""
        with self._lock:
            inference, decode, encode, queue = (
                old + new for old, new in zip(self._settled, _shares(self._noted), strict=True)
            )
        return Timings(decode, queue, inference, encode)

    def _note(self, phase: int, start: float, stop: float) -> None:
        if self._whole is not None:
            self._whole._note(phase, start, stop)
        with self._lock:
            self._noted[phase].append((max(start, self._horizon), stop))
            if len(self._noted[phase]) > NOTED:
                self._settle(stop - RECENT_SECONDS)

    def _settle(self, horizon: float) -> None:
        """Counts what is long past, and forgets it; what is heard of that time later is not counted again."""
        old = [[(start, min(stop, horizon)) for start, stop in each if start < horizon] for each in self._noted]
        self._settled = [before + more for before, more in zip(self._settled, _shares(old), strict=True)]
        self._noted = [
            union([(max(start, horizon), stop) for start, stop in each if stop > horizon]) for each in self._noted
        ]
        self._horizon = max(self._horizon, horizon)


def _shares(phases: Sequence[list[Interval]]) -> list[float]:
    """What each phase has of the time, once those before it have theirs."""
    together: list[Interval] = []
    shares: list[float] = []
    counted = 0.0
    for intervals in phases:
        together = union([*together, *intervals])
        length = sum(stop - start for start, stop in together)
        shares.append(length - counted)
        counted = length
    return shares


def union(intervals: list[Interval]) -> list[Interval]:
    """The same time without overlaps, in order."""
    joined: list[Interval] = []
    for start, stop in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
