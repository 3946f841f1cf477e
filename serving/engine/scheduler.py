"""Schedules one device: a batch on each instance at a time, the next prepared meanwhile, in an order by priorities.

An instance is a thread that computes; all compute with the same open graphs. A batch begins as soon as an instance is
free.

Of the queues of one priority, that whose first job is due first comes first; queues without due times take turns. BULK
batches run when no INTERACTIVE job waits; where some always do, one runs after INTERACTIVE_PER_BULK interactive
batches, as soon as no job waits that a bulk batch has delayed already. So an interactive job waits for at most one
batch of bulk jobs to end, and since queues are bounded, bulk jobs wait a bounded time.
"""

import asyncio
import contextlib
import itertools
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from speakerlens.serving.engine.queue import Priority, PriorityQueue, now
from speakerlens.serving.errors import Reason, UnavailableError

log = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
JobT_contra = TypeVar("JobT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)

INTERACTIVE_PER_BULK = 4
# The next batch is formed this long before the device is expected to be free, in addition to the time that preparing
# takes: later, the device might wait; sooner, the batch would miss jobs that arrive meanwhile.
AHEAD_SECONDS = 0.002
PREPARING_MEMORY = 0.8
# A timer for less might end at the same time, by rounding, and be set again without end.
TIMER_SECONDS = 1e-6
# After this many internal errors without a batch in between, the scheduler fails.
MAX_FAULTS = 3
FAULT_PAUSE_SECONDS = 0.05


class Work(Protocol[JobT_contra, ResultT_co]):
    """A function of a device.

    Attributes:
        measured: cost and seconds of a job that was computed already; zeros for none.
    """

    measured: tuple[float, float]

    def cost(self, job: JobT_contra) -> int:
        """Return the cost of one job, which is positive, such as the number of samples computed for it."""

    def prepare(self, jobs: Sequence[JobT_contra]) -> Any:
        """Return the inputs of a batch; runs in any thread."""

    def compute(self, inputs: Any) -> Sequence[ResultT_co]:
        """Return the results for what `prepare` returned, one for each job in order; runs in an instance's thread.

        Instances compute at the same time.
        """

    def probe(self) -> None:
        """Compute a known-good job in an instance's thread; raise if nothing can be computed."""


class Instance:
    """A thread that computes one batch at a time.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def compute(self, work: Work[JobT, ResultT], jobs: Sequence[JobT], inputs: Any | None) -> list[ResultT]:
        """Return the results of jobs; prepare them in the thread if `inputs` is None.

        Raises:
            RuntimeError: the work returned another number of results than of jobs.
        """

        def prepare_and_compute() -> Sequence[ResultT]:
            return work.compute(work.prepare(jobs) if inputs is None else inputs)

        results = list(await asyncio.get_running_loop().run_in_executor(self._thread, prepare_and_compute))
        if len(results) != len(jobs):
            raise RuntimeError(f"{len(results)} results for {len(jobs)} jobs")
        return results

    async def probe(self, work: Work[Any, Any]) -> bool:
        """Return whether the work still computes a known-good job."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work.probe)
        except Exception:  # noqa: BLE001 - any error means that it failed
            return False
        return True

    def close(self) -> None:
        """End the thread once it is idle."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class BatchSource(Protocol):
    """What the scheduler needs of a batcher."""

    work: Work[Any, Any]

    @property
    def queues(self) -> Sequence[PriorityQueue[Any, Any]]:
        """The queues by priority; empty while the engine is broken."""

    def expected_s(self, batch: Sequence[Any]) -> float:
        """Return the expected seconds of computing a batch."""

    async def run(self, priority: Priority, batch: Sequence[Any], inputs: Any | None, instance: Instance) -> None:
        """Compute a batch that was removed from its queue and set its results; `inputs` None if not prepared."""


@dataclass(frozen=True)
class _Running:
    """A batch that an instance computes, with the time at which it is expected to end."""

    instance: Instance
    source: BatchSource
    priority: Priority
    expected_end: float


class _ScheduledQueue:
    """One queue of a source, and the number of the last batch that was taken from it."""

    def __init__(self, source: BatchSource, priority: Priority) -> None:
        self.source = source
        self.priority = priority
        self.last_batch = -1

    @property
    def queue(self) -> PriorityQueue[Any, Any] | None:
        queues = self.source.queues
        return queues[self.priority] if queues else None

    @property
    def order(self) -> tuple[float, int]:
        """Return its place among queues of its priority."""
        return self.queue.due if self.queue else math.inf, self.last_batch


class Scheduler:
    """Runs batches on instances and prepares them in a thread; must be used on the event loop.

    Args:
        name: of the device, for the threads.
        instances: batches that are computed at a time.

    Attributes:
        failed: done, with the error, once the scheduler loop has failed for good; nothing is computed from then on.
        instances: the threads that compute.
    """

    def __init__(self, name: str, instances: int = 1) -> None:
        self.instances = tuple(Instance(f"device-{name}-{number}") for number in range(instances))
        self._free = list(reversed(self.instances))
        self._prepare_thread = ThreadPoolExecutor(1, thread_name_prefix=f"prepare-{name}")
        self._preparing_s = 0.0
        self._scheduled: dict[BatchSource, list[_ScheduledQueue]] = {}
        # Queues that may hold jobs, in the order in which they came to hold some: most of a server's never do.
        self._occupied: dict[_ScheduledQueue, None] = {}
        self._batches = 0
        self._changed = asyncio.Event()
        self._running: dict[asyncio.Task[None], _Running] = {}
        self._bulk_ended_at = -math.inf
        self._interactive_since_bulk = 0
        self._loop_task: asyncio.Task[None] | None = None
        self._faults = 0
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    def register(self, source: BatchSource) -> None:
        """Schedule the queues of a source from now on."""
        self._scheduled[source] = [_ScheduledQueue(source, priority) for priority in Priority]
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._loop())

    async def unregister(self, source: BatchSource) -> None:
        """Schedule a source no longer; cancel its running batches."""
        for each in self._scheduled.pop(source, ()):
            self._occupied.pop(each, None)
        tasks = [task for task, running in self._running.items() if running.source is source]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def notify(self, source: BatchSource) -> None:
        """Wake the scheduler: a job of a source arrived, or its engine's state changed."""
        self._occupied.update(dict.fromkeys(self._scheduled.get(source, ())))
        self._changed.set()

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._running and not self._waiting()

    def running_s(self) -> float:
        """Return the expected seconds until an instance is free."""
        if self._free:
            return 0.0
        return max(0.0, min(running.expected_end for running in self._running.values()) - now())

    def queued_s(self, due: float) -> float:
        """Return the expected seconds in which all instances compute the waiting interactive jobs due by then."""
        waiting = (each for each in self._waiting() if each.priority is Priority.INTERACTIVE)
        work = sum(each.queue.expected_before(due) for each in waiting if each.queue)
        return work / len(self.instances)

    def delay(self, queue: PriorityQueue[Any, Any]) -> float:
        """Return the expected seconds until an instance is free and all jobs of a queue are computed."""
        return self.running_s() + queue.expected_s / len(self.instances)

    def close(self) -> None:
        """Stop scheduling, and end the threads once they are idle."""
        if self._loop_task is not None:
            self._loop_task.cancel()
        for instance in self.instances:
            instance.close()
        self._prepare_thread.shutdown(wait=False, cancel_futures=True)

    async def _loop(self) -> None:
        """Schedule batches; on an internal error fail the waiting jobs and retry.

        Without this, an error in the loop would leave all callers waiting. After MAX_FAULTS in a row sets `failed`.
        """
        while self._faults < MAX_FAULTS:
            try:
                await self._wait_for_work()
                await self._run_next()
            except Exception as error:
                log.exception("the scheduler failed unexpectedly; waiting jobs are refused")
                self._faults += 1
                self._fail_waiting()
                if self._faults == MAX_FAULTS:
                    self.failed.set_result(error)
                await asyncio.sleep(FAULT_PAUSE_SECONDS)  # until the callers have left the queues

    def _fail_waiting(self) -> None:
        for each in itertools.chain.from_iterable(self._scheduled.values()):
            try:
                if each.queue is not None:
                    each.queue.fail_all(_internal_error)
            except Exception:
                log.exception("the waiting jobs cannot be refused")

    async def _run_next(self) -> None:
        prepared, inputs = None, None
        if not self._free:
            prepared = self._choose()
            inputs = await self._prepare(*prepared) if prepared else None
            if not self._free:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        # Since the batch was prepared, jobs of it may have ended, or more urgent ones have arrived.
        chosen = self._choose()
        if chosen is None:
            return
        try:
            self._start(*chosen, inputs if prepared is not None and prepared[1] == chosen[1] else None)
        except Exception:
            for queued in chosen[1]:  # in no queue any more
                queued.fail(_internal_error())
            raise
        self._faults = 0

    async def _wait_for_work(self) -> None:
        """Wait until a job waits and an instance is free, or about to be."""
        while True:
            self._changed.clear()
            left = None
            if self._waiting():
                left = self.running_s() - self._preparing_s - AHEAD_SECONDS
                if self._free or left < TIMER_SECONDS:
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    def _waiting(self) -> list[_ScheduledQueue]:
        """Return the queues that hold jobs, but for those of broken engines, which notify once they work."""
        found = [each for each in self._occupied if each.queue]
        if len(found) < len(self._occupied):
            self._occupied = dict.fromkeys(found)
        return found

    def _choose(self) -> tuple[_ScheduledQueue, list[Any]] | None:
        """Return the next batch, still in its queue."""
        for each in self._order():
            batch = each.queue.form_batch() if each.queue is not None else []
            if batch:
                return each, batch
        return None

    def _order(self) -> list[_ScheduledQueue]:
        """Return the queues that may form a batch, the most urgent first."""
        waiting = sorted(self._waiting(), key=lambda each: each.order)
        interactive = [each for each in waiting if each.priority is Priority.INTERACTIVE]
        # Jobs that a bulk batch has delayed must not be delayed by another.
        if any(each.queue.oldest_arrival <= self._bulk_ended_at for each in interactive if each.queue):
            return interactive
        bulk = [each for each in waiting if each.priority is Priority.BULK]
        bulk_first = self._interactive_since_bulk >= INTERACTIVE_PER_BULK
        return [*bulk, *interactive] if bulk_first else [*interactive, *bulk]

    def _start(self, scheduled: _ScheduledQueue, batch: list[Any], inputs: Any | None) -> None:
        self._batches += 1
        scheduled.last_batch = self._batches
        if scheduled.priority is Priority.BULK:
            self._bulk_ended_at, self._interactive_since_bulk = math.inf, 0
        elif any(each.priority is Priority.BULK for each in self._waiting()):
            self._interactive_since_bulk += 1
        for queued in batch:
            scheduled.source.queues[scheduled.priority].remove(queued)
        instance = self._free.pop()
        expected_end = now() + scheduled.source.expected_s(batch)
        task = asyncio.create_task(scheduled.source.run(scheduled.priority, batch, inputs, instance))
        self._running[task] = _Running(instance, scheduled.source, scheduled.priority, expected_end)
        task.add_done_callback(self._on_batch_end)

    def _on_batch_end(self, task: asyncio.Task[None]) -> None:
        ended = self._running.pop(task)
        self._free.append(ended.instance)
        # Infinity while any bulk batch runs.
        if ended.priority is Priority.BULK and all(
            each.priority is not Priority.BULK for each in self._running.values()
        ):
            self._bulk_ended_at = now()
        self._changed.set()

    async def _prepare(self, scheduled: _ScheduledQueue, batch: list[Any]) -> Any | None:
        """Return the inputs of a batch; None on an error, which will occur again in an instance's thread."""
        started = now()
        jobs = [queued.job for queued in batch]
        try:
            work = scheduled.source.work
            inputs = await asyncio.get_running_loop().run_in_executor(self._prepare_thread, work.prepare, jobs)
        except Exception:  # noqa: BLE001 - any error means that it failed
            return None
        self._preparing_s = max(now() - started, PREPARING_MEMORY * self._preparing_s)
        return inputs


def _internal_error() -> Exception:
    return UnavailableError(Reason.NOT_SERVING, "the server failed to schedule this request; try again")
