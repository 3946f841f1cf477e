"""Admission: a call is admitted as a whole, or refused at once, by the work that was admitted and is not done yet.

Decoding, speech detection, the device, maps and encoding share the processor's cores where models run on it. So their
work is added up in one sum, in seconds, and one speed says how many of these are done in a second; it is measured while
calls wait. A call is admitted if what is done before it and its own work fit into its deadline, and if no call that was
admitted before becomes late by it. Calls are served in the order of their deadlines, at most PATIENT_SECONDS after
their arrival; bulk work comes after interactive work.
"""

import asyncio
import math
from bisect import insort
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from heapq import heappop, heappush
from typing import Final

from speakerlens.serving.engine.queue import Priority, now
from speakerlens.serving.errors import DeadlineError, Reason, ResourceExhaustedError

# A call without a deadline, or with a distant one, is served as if it had to be answered in this time.
PATIENT_SECONDS: Final = 5.0
# A call is due later by this multiple of its work, so that of two that can wait the shorter comes first.
LONG_FACTOR: Final = 4.0
# Calls of more work than this run as bulk work but for their first window, so that others need not wait for them.
LONG_SECONDS: Final = 1.0
# Work before a call counts this much more than estimated. Bulk work takes every fifth batch and turn, where some waits.
CAUTION: Final = 2.0
INTERACTIVE_TURNS: Final = 4
BULK_SHARE: Final = 1 / INTERACTIVE_TURNS
# Share of the time to the deadline that may be taken when a call is let in before its own work is known.
DOOR_SHARE = 0.8
# Remaining work counts this much when it is asked whether a call can still meet its deadline: it may go faster.
OPTIMISM = 0.5
# The speed is a mean over about this time, in which the speed of one core counts for PRIOR_SECONDS.
SPEED_SECONDS, PRIOR_SECONDS = 1.0, 0.25
MIN_SPEED, MAX_SPEED = 0.25, 16.0
# The most that the time between two pieces of work counts, in seconds or as a multiple of the work if that is more;
# longer is a pause of the process.
MAX_GAP_SECONDS = 0.25
MAX_GAP_WORK = 4.0
# When to retry where `max_in_flight` requests are in work, and where half of these are streams, which last longer.
IN_FLIGHT_RETRY_SECONDS = 0.1
STREAM_RETRY_SECONDS = 2.0
MIN_RETRY_SECONDS = 0.01


class Speed:
    """Seconds of work that are done in a second while calls wait; must be used on the event loop."""

    def __init__(self) -> None:
        self._work = self._seconds = 0.0
        self._faded = self._recorded = now()

    @property
    def value(self) -> float:
        """Return the speed: that of one core, 1, if nothing was measured lately."""
        self._fade()
        speed = (self._work + PRIOR_SECONDS) / (self._seconds + PRIOR_SECONDS)
        return min(max(speed, MIN_SPEED), MAX_SPEED)

    def record(self, work: float, busy: bool) -> None:
        """Record that `work` seconds of work are done; `busy` is whether there was other work all the time before."""
        self._fade()
        elapsed, self._recorded = now() - self._recorded, now()
        if busy:
            self._work += work
            self._seconds += min(elapsed, max(MAX_GAP_SECONDS, MAX_GAP_WORK * work))

    def begin(self) -> None:
        """Record that a second call is in work: the time before does not count."""
        self._recorded = now()

    def _fade(self) -> None:
        kept = math.exp((self._faded - now()) / SPEED_SECONDS)
        self._work, self._seconds, self._faded = kept * self._work, kept * self._seconds, now()


class Admitted:
    """A call that was admitted.

    Attributes:
        deadline: on the event loop's clock; infinity for none.
        live: whether it is a stream, whose windows are due as they come.
        long: whether its work takes so long that only its first window is interactive.
        priority: of its work.
        left: seconds of its work that are not done.
        trial: whether it is admitted against the estimate, as nothing else is in work.
    """

    def __init__(
        self, admission: "Admission", deadline: float, priority: Priority, cost: float, steps: int, live: bool
    ) -> None:
        self._admission = admission
        self._step = cost / steps
        self._due = min(deadline, now() + PATIENT_SECONDS + LONG_FACTOR * cost)
        self.deadline = deadline
        self.live = live
        self.long = cost > LONG_SECONDS
        self.priority = Priority.BULK if self.long else priority
        self.left = cost
        self.trial = False

    def __lt__(self, other: "Admitted") -> bool:
        return (self.priority, self.due) < (other.priority, other.due)

    @property
    def due(self) -> float:
        """Return when it should be answered: the order of service within its priority."""
        return now() if self.live else self._due

    @property
    def latest(self) -> float | None:
        """Return the time after which the next step would be done for nothing; None without a deadline."""
        if self.deadline == math.inf:
            return None
        return self.deadline - (0.0 if self.trial else OPTIMISM * max(0.0, self.left - self._step))

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Return a block in which the call decodes, entered when it is its turn."""
        return self._admission.turn(self)

    def advance(self) -> None:
        """Record that a step of the call's work is done."""
        if not self.live:
            done = min(self._step, self.left)
            self._admission.record(done)
            self.left -= done


class Admission:
    """Admits calls; must be used on the event loop.

    Args:
        max_in_flight: calls in work at a time, at most half of them live streams.
        decoders: pieces of audio that are decoded at a time.
        running_s: returns the expected seconds until the running batch ends, which is not interrupted for a call.
        queued_s: returns the expected seconds of the waiting jobs that are due by a time. Those of streams count only
            here, as their length is unknown.
    """

    def __init__(
        self,
        max_in_flight: int,
        decoders: int,
        running_s: Callable[[], float] = lambda: 0.0,
        queued_s: Callable[[float], float] = lambda _: 0.0,
    ) -> None:
        self._most = max_in_flight
        self._most_live = max(1, max_in_flight // 2)
        self._in_flight = self._live = 0
        self._calls: list[Admitted] = []
        self._speed = Speed()
        self._decoders = decoders
        self._running_s = running_s
        self._queued_s = queued_s
        self._waiting: dict[Priority, list[tuple[float, int, asyncio.Future[None]]]] = {each: [] for each in Priority}
        self._turns = self._given = 0

    @property
    def left(self) -> float:
        """Return the seconds of work of all admitted calls that are not done."""
        return sum(each.left for each in self._calls)

    def check(self, deadline: float | None) -> None:
        """Refuse a call before its message is read, where hardly any call would be answered in time.

        Raises:
            ResourceExhaustedError: the work of the calls before it may take longer than its deadline allows.
            DeadlineError: it is expected to.
        """
        if deadline is not None and (self._calls or self._live):
            left = deadline - now()
            self._check_time(self._before(min(deadline, now() + PATIENT_SECONDS)), 0.0, left, DOOR_SHARE * left)

    @contextmanager
    def admit(
        self, cost: float, steps: int, deadline: float | None, priority: Priority, live: bool = False
    ) -> Iterator[Admitted]:
        """Enter a call; its work counts until it is done or the block is left.

        Args:
            cost: expected seconds of its work; for a live stream, of one window.
            steps: equal parts in which it will be done.
            deadline: on the event loop's clock, None for none.
            priority: INTERACTIVE where a user waits for the answer.
            live: whether it is a stream, which lasts as long as its client likes; streams get half of the places.

        Raises:
            ResourceExhaustedError: too many calls are in work, or their work takes too long.
            DeadlineError: the deadline has passed, or is expected to pass before the answer.
        """
        self._check_in_flight()
        if live and self._live >= self._most_live:
            raise ResourceExhaustedError(
                Reason.IN_FLIGHT,
                f"{self._most_live} live streams are in work already; try again later",
                STREAM_RETRY_SECONDS,
            )
        call = Admitted(self, math.inf if deadline is None else deadline, priority, cost, steps, live)
        if not live:
            self._check_deadlines(call)
            insort(self._calls, call)
            if len(self._calls) == 2:
                self._speed.begin()
        self._in_flight += 1
        self._live += live
        try:
            yield call
        finally:
            self._in_flight -= 1
            self._live -= live
            if not live:
                self._calls.remove(call)

    @asynccontextmanager
    async def turn(self, call: Admitted) -> AsyncIterator[None]:
        """Hold one of the decoders within the block; waiting calls get one in their order, bulk every fifth."""
        if self._decoders:
            self._decoders -= 1
        else:
            free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._turns += 1
            heappush(self._waiting[call.priority], (call.due, self._turns, free))
            try:
                await free
            except asyncio.CancelledError:
                if not free.cancelled():  # given at the same moment
                    self._give()
                raise
        try:
            yield
        finally:
            self._give()

    def _give(self) -> None:
        while any(self._waiting.values()):
            bulk = self._given >= INTERACTIVE_TURNS or not self._waiting[Priority.INTERACTIVE]
            queue = self._waiting[Priority.BULK if bulk and self._waiting[Priority.BULK] else Priority.INTERACTIVE]
            *_, free = heappop(queue)
            if not free.done():
                self._given = 0 if queue is self._waiting[Priority.BULK] else self._given + 1
                free.set_result(None)
                return
        self._decoders += 1

    def record(self, work: float) -> None:
        """Record that `work` seconds of the work of an admitted call are done, for the speed."""
        self._speed.record(work, len(self._calls) > 1)

    def _check_in_flight(self) -> None:
        if self._in_flight >= self._most:
            raise ResourceExhaustedError(
                Reason.IN_FLIGHT,
                f"{self._most} requests are in work already; try again later",
                IN_FLIGHT_RETRY_SECONDS,
            )

    def _before(self, due: float) -> float:
        """Return the expected seconds of the work before an interactive call that is due then."""
        work = bulk = 0.0
        for each in self._calls:
            if each.priority is Priority.BULK:
                bulk += each.left
            elif each.due <= due:
                work += each.left
        queued = self._running_s() + self._queued_s(due)
        return max((work + min(bulk, BULK_SHARE * work)) / self._speed.value, queued)

    def _check_deadlines(self, call: Admitted) -> None:
        """Refuse a call that would be late, or make another late."""
        left = call.deadline - now()
        if left <= 0:
            raise DeadlineError(Reason.DEADLINE, "the deadline passed before the call was admitted")
        speed = self._speed.value
        own = call.left / min(1.0, speed)
        if left <= own and not self._in_flight:
            call.trial = True  # nothing else would correct the estimate or the speed
            return
        if left <= call.left:
            raise DeadlineError(
                Reason.DEADLINE,
                f"the deadline cannot be met: the answer takes about {call.left:.3g} s, and {left:.3g} s are left",
            )
        if call.priority is Priority.BULK:
            before = sum(each.left for each in self._calls if not call < each) / speed
        else:
            before = self._before(call.due)
        self._check_time(before, own, left, left)
        total = call.left
        for each in self._calls:
            total += each.left
            if call < each and total - call.left <= speed * (each.deadline - now()) < total:
                raise self._overloaded(before + own, left)

    def _check_time(self, before: float, own: float, left: float, allowed: float) -> None:
        """Raise an error where work `before` a call, with caution, and its `own` take longer than is `allowed`."""
        if before + own > left:
            raise DeadlineError(
                Reason.DEADLINE,
                f"the deadline cannot be met: about {before:.3g} s of work wait before it, and {left:.3g} s are left",
                self._drained_s,
            )
        if CAUTION * before + own > allowed:
            raise self._overloaded(before + own, left)

    def _overloaded(self, expected: float, left: float) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            Reason.QUEUE_FULL,
            f"the server is overloaded: an answer is expected in {expected:.3g} s but may take longer, "
            f"and {left:.3g} s are left; try again later",
            self._drained_s,
        )

    @property
    def _drained_s(self) -> float:
        """Return the expected seconds until the work of all admitted calls is done."""
        return max(self.left / self._speed.value, MIN_RETRY_SECONDS)
