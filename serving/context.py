"""The call in progress: one context variable that the rpc layer sets, and where the call's time goes.

Outside a call (probes, background work, a unit test) `current_context` has no value.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

# Labels of a call that asks no variant, or more than one.
NO_VARIANT, SEVERAL_VARIANTS = "_none", "_several"
ID_HEADER = "x-request-id"
RETRY_HEADER = "retry-after-ms"
# Intervals of a phase that are kept as they are, and how old one must be to be summed and dropped.
MAX_INTERVALS = 512
RECENT_SECONDS = 10.0

Interval = tuple[float, float]


def _ignore(_value: object) -> None:
    pass


@dataclass
class CallContext:
    """One call, from its arrival to its status.

    Attributes:
        method: name of the RPC, without its service.
        id: request id, for the log, exemplars and the trailing metadata.
        variant: label of the models asked; the service sets it once it knows them.
        caller: name of the bearer token, None without one.
        started: arrival, on the clock of `time.monotonic`.
        status: name of the gRPC status that the call ends with.
        detail: message of that status, without what the caller wrote; for the log.
        retry_after_s: seconds after which a retry may succeed, None where that is unknown.
        reserve_answer: reserves bytes of an answer under construction; raises ResourceExhaustedError where they do not
            fit into the memory limit.
        report_phases: receives the seconds of each phase that just ended, in order.
    """

    method: str
    id: str
    variant: str = NO_VARIANT
    caller: str | None = None
    started: float = field(default_factory=time.monotonic)
    status: str = "OK"
    detail: str = ""
    retry_after_s: float | None = None
    reserve_answer: Callable[[int], None] = _ignore
    report_phases: Callable[[Mapping[str, float]], None] = _ignore

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata that goes out with the status: the request id and, if known, when to retry."""
        if self.retry_after_s is None:
            return ((ID_HEADER, self.id),)
        return (ID_HEADER, self.id), (RETRY_HEADER, str(max(1, round(self.retry_after_s * 1000))))


current_context: ContextVar[CallContext] = ContextVar("current_context")


def variant_label(variants: Iterable[str]) -> str:
    """Return the label of a call that asks these loaded variants."""
    names = set(variants)
    if not names:
        return NO_VARIANT
    return names.pop() if len(names) == 1 else SEVERAL_VARIANTS


@dataclass(frozen=True)
class Timings:
    """Seconds that a request spent in each phase; their sum is nearly all of its time."""

    decode: float
    queue: float
    inference: float
    encode: float


class Stopwatch:
    """Measure the phases of a request, several of which may run at once; thread-safe, in bounded memory.

    Every moment counts for one phase only, so that the phases never sum to more than the time that passed: inference
    comes first, then decode, encode, and queue. Time spent waiting for a streaming client counts for none.

    Args:
        parent: stopwatch of the work that this is a part of, which records the same intervals.
    """

    def __init__(self, parent: "Stopwatch | None" = None) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        # By phase, in the order in which time is assigned: inference, decode, encode, queue.
        self._intervals: list[list[Interval]] = [[], [], [], []]
        self._settled = [0.0, 0.0, 0.0, 0.0]
        self._horizon = -math.inf

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Record the block as decoding."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._record(1, started, time.monotonic())

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Record the block as encoding."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._record(2, started, time.monotonic())

    def computed(self, queue_s: float, inference_s: float) -> None:
        """Record a result that arrived just now, after these seconds in its queue and on the device."""
        now = time.monotonic()
        self._record(3, now - queue_s - inference_s, now)
        self._record(0, now - inference_s, now)

    def timings(self) -> Timings:
        """Return the duration of each phase up to now."""
        with self._lock:
            inference, decode, encode, queue = (
                old + new for old, new in zip(self._settled, _exclusive(self._intervals), strict=True)
            )
        return Timings(decode, queue, inference, encode)

    def _record(self, phase: int, start: float, stop: float) -> None:
        if self._parent is not None:
            self._parent._record(phase, start, stop)  # noqa: SLF001 - of the same class
        with self._lock:
            self._intervals[phase].append((max(start, self._horizon), stop))
            if len(self._intervals[phase]) > MAX_INTERVALS:
                self._settle(stop - RECENT_SECONDS)

    def _settle(self, horizon: float) -> None:
        """Sum and drop what lies before `horizon`; later records of that time are ignored."""
        old = [[(start, min(stop, horizon)) for start, stop in each if start < horizon] for each in self._intervals]
        self._settled = [before + more for before, more in zip(self._settled, _exclusive(old), strict=True)]
        self._intervals = [
            union([(max(start, horizon), stop) for start, stop in each if stop > horizon]) for each in self._intervals
        ]
        self._horizon = max(self._horizon, horizon)


def _exclusive(phases: Sequence[list[Interval]]) -> list[float]:
    """Return the seconds of each phase that no phase before it covers."""
    together: list[Interval] = []
    seconds: list[float] = []
    counted = 0.0
    for intervals in phases:
        together = union([*together, *intervals])
        length = sum(stop - start for start, stop in together)
        seconds.append(length - counted)
        counted = length
    return seconds


def union(intervals: list[Interval]) -> list[Interval]:
    """Return the same time as sorted intervals without overlaps."""
    joined: list[Interval] = []
    for start, stop in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
