"""Dynamic batching for one function of a device: jobs that wait are computed together, each with its own result.

A `Batcher` has a bounded queue for each priority. A job is not computed once its caller is cancelled or its deadline
has passed or would pass meanwhile; a job that would wait too long is refused at once. A failed batch is split in
halves, so that one bad job does not fail the others; where the engine is broken, the batch waits for its recovery.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from speakerlens.serving.engine.latency import LatencyEstimator, OverrunEstimator
from speakerlens.serving.engine.queue import (
    JobResult,
    Observer,
    Priority,
    PriorityQueue,
    QueuedJob,
    QueueLimits,
    deadline_at_risk,
    deadline_missed,
    deadline_unmeetable,
    engine_unusable,
    now,
)
from speakerlens.serving.engine.recovery import EngineRecovery
from speakerlens.serving.engine.scheduler import Scheduler, Work
from speakerlens.serving.errors import DeadlineError, Reason, RequestError, ResourceExhaustedError

log = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class Batcher(Generic[JobT, ResultT]):
    """Bounded queues for one function of a device, one for each priority.

    Args:
        name: for messages, such as `clean/1 explain`.
        work: what to compute, and what a job of it costs.
        scheduler: of the device; shared by its batchers.
        limits: of the queues and of the batches.
        observer: receives every change of length and every batch.
        recovery: of the engine that does the work; shared by the batchers of an engine.
    """

    def __init__(
        self,
        name: str,
        work: Work[JobT, ResultT],
        scheduler: Scheduler,
        limits: QueueLimits,
        observer: Observer,
        recovery: EngineRecovery,
    ) -> None:
        self.work = work
        self._name = name
        self._scheduler = scheduler
        self._limits = limits
        self._observer = observer
        self._recovery = recovery
        self._inference = LatencyEstimator()
        self._turnaround = LatencyEstimator()
        self._overruns = tuple(OverrunEstimator() for _ in Priority)
        self._queues: tuple[PriorityQueue[JobT, ResultT], ...] = tuple(
            PriorityQueue(name, limits, self._inference, self._turnaround, observer) for _ in Priority
        )
        recovery.subscribe(self._on_recovery)
        scheduler.register(self)

    @property
    def queues(self) -> Sequence[PriorityQueue[JobT, ResultT]]:
        """The queues by priority; empty while the engine is broken."""
        return () if self._recovery.broken else self._queues

    def check_room(self, deadline: float | None = None, priority: Priority = Priority.INTERACTIVE) -> None:
        """Raise the error that `submit` would raise at once, before any work is spent on a request.

        Each priority has room of its own, so that neither shuts the other out.

        Raises:
            UnavailableError: the engine is broken and cannot be opened, or the scheduler has failed.
            ResourceExhaustedError: the queue is full, or runs so late that the deadline is at risk.
            DeadlineError: what waits already takes longer than the caller has.
        """
        if self._recovery.failing or self._scheduler.failed.done():
            raise engine_unusable(self._name)
        queue = self._queues[priority]
        delay = self._scheduler.delay(queue, priority, 0.0)
        if len(queue) >= self._limits.max_waiting:
            raise ResourceExhaustedError(
                Reason.QUEUE_FULL,
                f"{self._limits.max_waiting} requests wait for {self._name} already; try again later",
                delay,
            )
        if deadline is not None and delay:
            self._check_expected(priority, deadline - now(), delay, 0.0)

    async def submit(
        self, job: JobT, deadline: float | None = None, priority: Priority = Priority.INTERACTIVE
    ) -> JobResult[ResultT]:
        """Wait in the queue and return the job's result; a cancelled caller leaves the queue at once.

        Args:
            job: what to compute.
            deadline: on the event loop's clock, or None.
            priority: INTERACTIVE where a user waits for the result.

        Raises:
            ResourceExhaustedError: the queue is full or runs late, which is known at once; or the job alone needs more
                memory than the device has.
            UnavailableError: the engine is broken, and several attempts to reopen it failed.
            DeadlineError: the deadline passed before the result was there, or would have.
        """
        self.check_room(None, priority)
        queue, queued = self._queues[priority], QueuedJob[JobT, ResultT](job, self.work.cost(job), deadline)
        self._check_deadline(queued, priority)
        queue.add(queued)
        self._scheduler.notify()
        try:
            async with asyncio.timeout_at(deadline):
                done = await queued.future
        except TimeoutError:
            self._record_wait(queued, priority)
            raise deadline_missed(self._name) from None
        except DeadlineError:
            self._record_wait(queued, priority)
            raise
        finally:
            queue.remove(queued)
        self._record_wait(queued, priority)
        return done

    async def close(self) -> None:
        """Stop computing and cancel the callers that still wait."""
        await self._scheduler.unregister(self)
        for queue in self._queues:
            queue.cancel_all()

    def expected_s(self, batch: Sequence[QueuedJob[JobT, ResultT]]) -> float:
        """Return the expected seconds of computing a batch."""
        return self._inference.seconds(self._queues[0].batch_cost(batch))

    async def run(self, priority: Priority, batch: Sequence[QueuedJob[JobT, ResultT]], inputs: Any | None) -> None:
        """Compute a batch that was removed from its queue and set its results; `inputs` None if not prepared."""
        try:
            await self._run(priority, batch, inputs)
        except asyncio.CancelledError:
            for queued in batch:
                queued.future.cancel()
            raise
        except Exception as error:  # no other code would end these jobs
            log.exception("a batch of %d for %s failed unexpectedly", len(batch), self._name)
            for queued in batch:
                queued.fail(error)

    async def _run(self, priority: Priority, batch: Sequence[QueuedJob[JobT, ResultT]], inputs: Any | None) -> None:
        started = now()
        earliest = self._scheduler.earliest_start(min(queued.arrived for queued in batch))
        try:
            results = await self._scheduler.compute(self.work, [queued.job for queued in batch], inputs)
        except Exception as error:  # noqa: BLE001 - any error fails or retries the batch
            await self._retry_or_fail(priority, batch, error)
            return
        seconds = now() - started
        for queued, result in zip(batch, results, strict=True):
            if not queued.future.done():
                queued.future.set_result(JobResult(result, started - queued.arrived, seconds))
        self._inference.record(self._queues[priority].batch_cost(batch), seconds)
        # Waiting jobs count without padding, so that padding is part of the time that a unit of their cost takes.
        self._turnaround.record(sum(queued.cost for queued in batch), now() - earliest)
        self._observer.record_batch(len(batch), seconds)

    async def _retry_or_fail(
        self, priority: Priority, batch: Sequence[QueuedJob[JobT, ResultT]], error: Exception
    ) -> None:
        """Put a failed batch back, to be tried in halves; fail a job that failed alone.

        A job is tried as often as its batch can be halved, and once more if it failed alone on a broken engine.
        """
        works = await self._scheduler.probe(self.work)
        log.warning("a batch of %d for %s failed: %s", len(batch), self._name, error)
        if not works:
            self._recovery.start()
        retried = []
        for queued in batch:
            if queued.future.done():
                continue
            if len(batch) == 1 and (works or queued.retried):
                queued.fail(self._caller_error(error))
                continue
            queued.retried = len(batch) == 1
            queued.max_batch = max(1, len(batch) // 2)
            retried.append(queued)
        self._queues[priority].put_back(retried)

    def _caller_error(self, error: Exception) -> Exception:
        if not isinstance(error, MemoryError):
            return error
        exhausted: RequestError = ResourceExhaustedError(
            Reason.MEMORY, f"{self._name} needs more memory for it than the device has; send less audio at once"
        )
        exhausted.__cause__ = error
        return exhausted

    def _check_deadline(self, queued: QueuedJob[JobT, ResultT], priority: Priority) -> None:
        """Refuse a job that would be late, rather than let it wait for that."""
        needed = self._inference.seconds(queued.cost)
        delay = self._scheduler.delay(self._queues[priority], priority, needed)
        queued.expected_s = delay + needed
        left = queued.deadline - now()
        if left <= 0:
            raise deadline_missed(self._name)
        if left <= needed and not delay:
            self._inference.decay()
        self._check_expected(priority, left, delay, needed)

    def _check_expected(self, priority: Priority, left: float, delay: float, needed: float) -> None:
        """Raise an error where a job that waits `delay` and then takes `needed` would not be done within `left`."""
        expected = delay + needed
        if left <= expected:
            raise deadline_unmeetable(self._name, delay, needed, left)
        # On an idle device a job starts at once, so that no queue can delay it.
        at_worst = expected * self._overruns[priority].factor(now()) if delay else expected
        if left <= at_worst:
            raise deadline_at_risk(self._name, expected, at_worst, left)

    def _record_wait(self, queued: QueuedJob[JobT, ResultT], priority: Priority) -> None:
        if queued.expected_s:
            self._overruns[priority].record(queued.expected_s, now() - queued.arrived, now())

    def _on_recovery(self, _works: bool) -> None:
        if self._recovery.failing:
            for queue in self._queues:
                queue.fail_all(lambda: engine_unusable(self._name))
        self._scheduler.notify()
