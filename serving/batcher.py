"""Queues in front of a device: what waits is computed together, and everyone gets their own answer.

One `Device` is one thing that computes one batch at a time, off the event loop. Each `Batcher` is a bounded queue for
one function of that device. Batches are formed only when the device is free, so that what arrives meanwhile joins them;
queues take turns. Nothing is computed for callers who have gone, or whose deadline has passed or would pass meanwhile;
how long computing takes is learned from the batches before.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from serving.errors import DeadlineError, Reason, ResourceExhaustedError
from serving.priority import Priority

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

# What an older batch still counts, for each newer one, in the mean of how long computing takes.
BATCH_MEMORY = 0.7
# A refusal measures nothing, so each lowers that mean: one slow batch must not shut the queue for ever.
REFUSAL_RELIEF = 0.9


class Observer(Protocol):
    """Hears what a batcher does."""

    def waiting(self, change: int) -> None:
        """The queue grew or shrank by `change`."""

    def ran(self, size: int, seconds: float) -> None:
        """A batch of `size` took `seconds` on the device."""


class Device:
    """One computing device: a thread of its own, and turns in the order of asking."""

    def __init__(self, name: str) -> None:
        self.turn = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"device-{name}")

    async def run(self, function: Callable[[Sequence[JobT]], Sequence[ResultT]], jobs: Sequence[JobT]) -> list[ResultT]:
        """Runs `function` on the device's thread; one answer per job, or an error.

        Raises:
            RuntimeError: `function` gave another number of answers than it got jobs.
        """
        results = list(await asyncio.get_running_loop().run_in_executor(self._executor, function, jobs))
        if len(results) != len(jobs):
            raise RuntimeError(f"{len(results)} answers for {len(jobs)} jobs")
        return results

    def close(self) -> None:
        """Ends the thread once it is idle."""
        self._executor.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Done(Generic[ResultT]):
    """An answer, how long it waited for the device, and how long its batch ran, in seconds."""

    result: ResultT
    queue_s: float
    inference_s: float


class _Entry(Generic[JobT, ResultT]):
    def __init__(self, job: JobT, cost: int, deadline: float | None, priority: Priority) -> None:
        self.job = job
        self.priority = priority
        self.cost = cost
        self.deadline = math.inf if deadline is None else deadline
        self.arrived = time.monotonic()
        self.future: asyncio.Future[Done[ResultT]] = asyncio.get_running_loop().create_future()


@dataclass(frozen=True)
class Bounds:
    """How much may wait, and how much may be computed together.

    A batch costs its size times its dearest job, as all are padded to the longest; a single job may cost anything.
    """

    waiting: int
    batch: int
    batch_cost: int


class Batcher(Generic[JobT, ResultT]):
    """A bounded queue for one function of a device.

    Args:
        name: for messages, such as `clean/1 explain`.
        function: computes a batch; answer i belongs to job i. Runs on the device's thread.
        cost: of one job, such as its number of samples.
        device: where it runs; shared between batchers.
        bounds: of the queue and of the batches.
        observer: hears of every change.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Sequence[JobT]], Sequence[ResultT]],
        cost: Callable[[JobT], int],
        device: Device,
        bounds: Bounds,
        observer: Observer,
    ) -> None:
        self._name = name
        self._function = function
        self._cost = cost
        self._device = device
        self._bounds = bounds
        self._observer = observer
        self._waiting: dict[int, _Entry[JobT, ResultT]] = {}
        # Of the batches so far, older ones counting less; as sums, because a short batch is mostly overhead.
        self._spent_s, self._spent_cost = 0.0, 0.0
        self._arrival = asyncio.Event()
        self._worker = asyncio.create_task(self._work(), name=f"batcher {name}")

    def check_room(self) -> None:
        """Refuses early, before any work is spent on a request that could not wait here.

        Raises:
            ResourceExhaustedError: the queue is full.
        """
        if len(self._waiting) >= self._bounds.waiting:
            raise ResourceExhaustedError(
                Reason.QUEUE_FULL, f"{self._bounds.waiting} requests wait for {self._name} already; try again later"
            )

    async def submit(
        self, job: JobT, deadline: float | None = None, priority: Priority = Priority.INTERACTIVE
    ) -> Done[ResultT]:
        """Waits in the queue and on the device; a caller who is cancelled leaves the queue at once.

        Args:
            job: what to compute.
            deadline: on the clock of `time.monotonic`, or None.
            priority: whether somebody is waiting for the answer.

        Raises:
            ResourceExhaustedError: the queue is full; known at once.
            DeadlineError: the deadline passed before the answer was there, or would have.
        """
        self.check_room()
        entry: _Entry[JobT, ResultT] = _Entry(job, self._cost(job), deadline, priority)
        key = id(entry)
        self._waiting[key] = entry
        self._observer.waiting(1)
        self._arrival.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await entry.future
        except TimeoutError:
            raise _late(self._name) from None
        finally:
            if self._waiting.pop(key, None) is not None:
                self._observer.waiting(-1)

    async def close(self) -> None:
        """Stops taking from the queue. Callers still waiting are cancelled."""
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        for entry in self._waiting.values():
            entry.future.cancel()

    async def _work(self) -> None:
        while True:
            await self._arrival.wait()
            async with self._device.turn:
                batch = self._take()
                if batch:
                    await self._run(batch)

    def _take(self) -> list[_Entry[JobT, ResultT]]:
        """The longest run of entries, oldest first, that keeps the bounds and the deadlines of all in it."""
        batch: list[_Entry[JobT, ResultT]] = []
        dearest, earliest = 0, math.inf
        for key, entry in list(self._waiting.items()):
            if entry.future.done():
                continue  # its caller has gone and is about to take it out
            if self._refuse_late(entry):
                continue
            dearest, earliest = max(dearest, entry.cost), min(earliest, entry.deadline)
            cost = (len(batch) + 1) * dearest
            over = cost > self._bounds.batch_cost or time.monotonic() + self._seconds(cost) >= earliest
            if batch and (len(batch) == self._bounds.batch or over):
                break
            batch.append(entry)
            del self._waiting[key]
        self._observer.waiting(-len(batch))
        if all(entry.future.done() for entry in self._waiting.values()):
            self._arrival.clear()
        return batch

    def _seconds(self, cost: int) -> float:
        """How long a batch of this cost is likely to take; 0 where nothing is known yet."""
        return cost * self._spent_s / self._spent_cost if self._spent_cost else 0.0

    def _refuse_late(self, entry: _Entry[JobT, ResultT]) -> bool:
        """Answers an entry whose deadline has passed, or would even if it were computed alone; whether that is so."""
        left, needed = entry.deadline - time.monotonic(), self._seconds(entry.cost)
        if left > needed:
            return False
        if left > 0:
            message = f"the deadline cannot be met: {self._name} takes about {needed:.3g} s"
            entry.future.set_exception(DeadlineError(Reason.DEADLINE, message))
            self._spent_s *= REFUSAL_RELIEF
        else:
            entry.future.set_exception(_late(self._name))
        return True

    async def _run(self, batch: Sequence[_Entry[JobT, ResultT]]) -> None:
        started = time.monotonic()
        try:
            results = await self._device.run(self._function, [entry.job for entry in batch])
        except asyncio.CancelledError:
            for entry in batch:
                entry.future.cancel()
            raise
        except Exception as error:
            if len(batch) > 1:  # find who is to blame, and answer the others
                for entry in batch:
                    if not entry.future.done() and not self._refuse_late(entry):
                        await self._run([entry])
            elif not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        seconds = time.monotonic() - started
        self._observer.ran(len(batch), seconds)
        self._spent_s = BATCH_MEMORY * self._spent_s + seconds
        self._spent_cost = BATCH_MEMORY * self._spent_cost + len(batch) * max(entry.cost for entry in batch)
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(Done(result, started - entry.arrived, seconds))


def _late(name: str) -> DeadlineError:
    return DeadlineError(Reason.DEADLINE, f"the deadline passed while waiting for {name}")
