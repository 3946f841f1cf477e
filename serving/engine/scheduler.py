"""One computing device: one batch at a time, the next made ready meanwhile, and turns that respect priorities.

Queues of the same priority take turns. BULK work runs when no INTERACTIVE work waits; where some always does, it gets a
turn after BULK_PATIENCE interactive batches, as soon as nobody is waiting who was delayed by a bulk batch already. So
nobody interactive waits for more than one batch of bulk work, and since queues are bounded, bulk work always comes up.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from speakerlens.serving.engine.priority import Priority
from speakerlens.serving.engine.queue import PriorityQueue, now
from speakerlens.serving.errors import Reason, UnavailableError

log = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
TakenT_contra = TypeVar("TakenT_contra", contravariant=True)
GivenT_co = TypeVar("GivenT_co", covariant=True)

BULK_PATIENCE = 4
# The next batch is formed this much before the device is expected to be free, beside the time that preparing takes:
# later, the device might wait; sooner, a batch would miss what arrives meanwhile.
AHEAD_SECONDS = 0.002
PREPARING_MEMORY = 0.8
# After so many faults of ours without a batch in between nothing will be computed any more.
MOST_FAULTS = 3
FAULT_SECONDS = 0.05


class Work(Protocol[TakenT_contra, GivenT_co]):
    """What a device does for a queue."""

    def cost(self, job: TakenT_contra) -> int:
        """Of one job, such as the number of samples that are computed for it."""

    def prepare(self, jobs: Sequence[TakenT_contra]) -> Any:
        """Makes a batch, in any thread."""

    def compute(self, feed: Any) -> Sequence[GivenT_co]:
        """Computes what `prepare` made, on the device's thread; answer i belongs to job i."""

    def probe(self) -> None:
        """Computes something that is known to work, on the device's thread; an error says that nothing does now."""


class Queue(Protocol):
    """What a device asks of whoever uses it."""

    work: Work[Any, Any]

    @property
    def lanes(self) -> Sequence[PriorityQueue[Any, Any]]:
        """By priority; none while its engine is broken."""

    def expected(self, batch: Sequence[Any]) -> float:
        """Seconds that a batch will probably take."""

    async def run(self, priority: Priority, batch: Sequence[Any], feed: Any | None) -> None:
        """Computes and answers a batch that was taken out of its lane, made ready where `feed` is not None."""


class _Turn:
    """A queue at one priority, and when it last had its turn."""

    def __init__(self, queue: Queue, priority: Priority) -> None:
        self.queue = queue
        self.priority = priority
        self.served = -1

    @property
    def lane(self) -> PriorityQueue[Any, Any] | None:
        lanes = self.queue.lanes
        return lanes[self.priority] if lanes else None


class Scheduler:
    """A thread that computes, one that prepares, and a task that gives out turns; must be used on the event loop.

    Attributes:
        failed: done, with the error, once giving out turns has failed for good; nothing is computed from then on.
    """

    def __init__(self, name: str) -> None:
        self._computing = ThreadPoolExecutor(1, thread_name_prefix=f"device-{name}")
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix=f"prepare-{name}")
        self._preparing_s = 0.0
        self._turns: list[_Turn] = []
        self._count = 0
        self._news = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._runs_for: Queue | None = None
        self._ends = 0.0
        self._ended_at = -math.inf
        self._bulk_ended = -math.inf
        self._since_bulk = 0
        self._worker: asyncio.Task[None] | None = None
        self._faults = 0
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    def attach(self, queue: Queue) -> None:
        """Gives a queue turns from now on."""
        self._turns += [_Turn(queue, priority) for priority in Priority]
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    async def detach(self, queue: Queue) -> None:
        """Gives a queue no more turns; whoever is in its running batch is cancelled."""
        self._turns = [turn for turn in self._turns if turn.queue is not queue]
        if self._running is not None and self._runs_for is queue:
            self._running.cancel()
            await asyncio.wait({self._running})

    def notify(self) -> None:
        """Something arrived, or may be computed again."""
        self._news.set()

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits here."""
        return self._running is None and not any(turn.lane for turn in self._turns)

    def delay(self, lane: PriorityQueue[Any, Any], priority: Priority, needed: float) -> float:
        """How many seconds pass, probably, before a job that takes `needed` and joins this lane last is begun.

        Other queues of its priority take turns with this one, so they delay it by no more than its own lane does.
        """
        own = lane.seconds
        delay = max(0.0, self._ends - now()) + own if self._running is not None else own
        for turn in self._turns:
            other = turn.lane
            if other is not None and other is not lane and turn.priority <= priority:
                delay += other.seconds if turn.priority < priority else min(other.seconds, own + needed)
        return delay

    def begun(self, arrived: float) -> float:
        """When the batch that is being started, with a job that came at `arrived`, might have been begun at best."""
        return self._ended_at if arrived <= self._ended_at else now()

    async def compute(self, work: Work[JobT, ResultT], jobs: Sequence[JobT], feed: Any | None) -> list[ResultT]:
        """Computes on the device's thread; one answer per job, or an error.

        Raises:
            RuntimeError: there is another number of answers than of jobs.
        """

        def whole() -> Sequence[ResultT]:
            return work.compute(work.prepare(jobs) if feed is None else feed)

        results = list(await asyncio.get_running_loop().run_in_executor(self._computing, whole))
        if len(results) != len(jobs):
            raise RuntimeError(f"{len(results)} answers for {len(jobs)} jobs")
        return results

    async def works(self, work: Work[Any, Any]) -> bool:
        """Whether it still computes what is known to work."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._computing, work.probe)
        except Exception:  # whatever it is, it did not work
            return False
        return True

    def close(self) -> None:
        """Ends the threads once they are idle."""
        if self._worker is not None:
            self._worker.cancel()
        executors: tuple[Executor, ...] = (self._computing, self._preparing)
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        """A fault of ours in here would leave everybody waiting for ever, with nobody to notice."""
        while self._faults < MOST_FAULTS:
            try:
                await self._until_wanted()
                await self._give_turn()
            except Exception as error:
                log.exception("giving out turns failed unexpectedly; who waits is sent away")
                self._faults += 1
                self._send_away()
                if self._faults == MOST_FAULTS:
                    self.failed.set_result(error)
                await asyncio.sleep(FAULT_SECONDS)  # until they have left

    def _send_away(self) -> None:
        for turn in self._turns:
            try:
                if turn.lane is not None:
                    turn.lane.refuse(_at_fault)
            except Exception:
                log.exception("not even that can be done")

    async def _give_turn(self) -> None:
        ahead, feed = None, None
        if self._running is not None:
            ahead = self._choose()
            feed = await self._prepare(*ahead) if ahead else None
            if self._running is not None:
                await asyncio.wait({self._running})
        # Since one was prepared some may have gone, expired or arrived; or somebody more urgent has.
        chosen = self._choose()
        if chosen is None:
            return
        try:
            self._start(*chosen, feed if ahead is not None and ahead[1] == chosen[1] else None)
        except Exception:
            for entry in chosen[1]:  # in no lane any more
                entry.fail(_at_fault())
            raise
        self._faults = 0

    async def _until_wanted(self) -> None:
        """Until there is something to form a batch of, and what runs, if anything, is nearly over."""
        while True:
            self._news.clear()
            at = min((turn.lane.ready_at() for turn in self._turns if turn.lane is not None), default=math.inf)
            if self._running is not None:
                at = max(at, self._ends - self._preparing_s - AHEAD_SECONDS)
            left = at - now()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(left) else left):
                    await self._news.wait()

    def _choose(self) -> tuple[_Turn, list[Any]] | None:
        """The next batch, still in its lane."""
        for turn in self._order(now()):
            batch = turn.lane.form() if turn.lane is not None else []
            if batch:
                return turn, batch
        return None

    def _order(self, at: float) -> list[_Turn]:
        """Who may form a batch now, the first first."""
        waiting = sorted((turn for turn in self._turns if turn.lane), key=lambda turn: turn.served)
        interactive = [turn for turn in waiting if turn.priority is Priority.INTERACTIVE]
        # Somebody waits who waited for a batch of bulk work before: nothing else may come first.
        if any(turn.lane.oldest <= self._bulk_ended for turn in interactive if turn.lane):
            return interactive
        bulk = [turn for turn in waiting if turn.priority is Priority.BULK]
        order = [*bulk, *interactive] if self._since_bulk >= BULK_PATIENCE else [*interactive, *bulk]
        return [turn for turn in order if turn.lane and turn.lane.ready_at() <= at]

    def _start(self, turn: _Turn, batch: list[Any], feed: Any | None) -> None:
        self._count += 1
        turn.served = self._count
        if turn.priority is Priority.BULK:
            self._bulk_ended, self._since_bulk = math.inf, 0
        elif any(other.lane for other in self._turns if other.priority is Priority.BULK):
            self._since_bulk += 1
        for entry in batch:
            turn.queue.lanes[turn.priority].remove(entry)
        self._ends = now() + turn.queue.expected(batch)
        self._runs_for = turn.queue
        self._running = asyncio.create_task(turn.queue.run(turn.priority, batch, feed))
        self._running.add_done_callback(self._ended)

    def _ended(self, _task: object) -> None:
        self._running = self._runs_for = None
        self._ended_at = now()
        if self._bulk_ended == math.inf:
            self._bulk_ended = now()
        self._news.set()

    async def _prepare(self, turn: _Turn, batch: list[Any]) -> Any | None:
        """None where it fails: then it fails again on the device's thread, and is dealt with as any failure there."""
        started = now()
        jobs = [entry.job for entry in batch]
        try:
            feed = await asyncio.get_running_loop().run_in_executor(self._preparing, turn.queue.work.prepare, jobs)
        except Exception:
            return None
        seconds = now() - started
        self._preparing_s = max(seconds, PREPARING_MEMORY * self._preparing_s)
        return feed


def _at_fault() -> Exception:
    return UnavailableError(Reason.NOT_SERVING, "the server failed to give this its turn; try again")
