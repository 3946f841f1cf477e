"""Dynamic batching for one function of a device: jobs that wait are computed together, each with its own result.

A `Batcher` has a bounded queue for each priority. A job is not computed once its caller is cancelled or its deadline
has passed or would pass meanwhile; whether a call waits too long is decided when it is admitted
(`serving.engine.admission`). A failed batch is split in halves, so that one bad job does not fail the others; where the
engine is broken, the batch waits for its recovery.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from speakerlens.serving.engine.queue import (
    Estimate,
    JobResult,
    Observer,
    Priority,
    PriorityQueue,
    QueuedJob,
    QueueLimits,
    deadline_missed,
    deadline_unmeetable,
    engine_unusable,
    now,
)
from speakerlens.serving.engine.recovery import EngineRecovery
from speakerlens.serving.engine.scheduler import Instance, Scheduler, Work
from speakerlens.serving.errors import Reason, RequestError, ResourceExhaustedError

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
        self.inference = Estimate(*work.measured)
        self._queues: tuple[PriorityQueue[JobT, ResultT], ...] = tuple(
            PriorityQueue(name, limits, self.inference, observer) for _ in Priority
        )
        recovery.subscribe(self._on_recovery)
        scheduler.register(self)

    @property
    def queues(self) -> Sequence[PriorityQueue[JobT, ResultT]]:
        """The queues by priority; empty while the engine is broken."""
        return () if self._recovery.broken else self._queues

    def check_room(self, priority: Priority = Priority.INTERACTIVE) -> None:
        """Raise the error that `submit` would raise at once, before any work is spent on a request.

        Each priority has room of its own, so that neither shuts the other out.

        Raises:
            UnavailableError: the engine is broken and cannot be opened, or the scheduler has failed.
            ResourceExhaustedError: the queue is full.
        """
        self._check_engine()
        queue = self._queues[priority]
        if queue.requests >= self._limits.max_waiting:
            raise ResourceExhaustedError(
                Reason.QUEUE_FULL,
                f"{self._limits.max_waiting} requests wait for {self._name} already; try again later",
                self._scheduler.delay(queue),
            )

    async def submit(
        self,
        job: JobT,
        deadline: float | None = None,
        priority: Priority = Priority.INTERACTIVE,
        due: float | None = None,
    ) -> JobResult[ResultT]:
        """Wait in the queue and return the job's result; a cancelled caller leaves the queue at once.

        Args:
            job: what to compute.
            deadline: on the event loop's clock, or None.
            priority: INTERACTIVE where a user waits for the result.
            due: when the call that it belongs to should be answered, on the same clock. Such a job has its place in
                that order, and is not refused for a full queue: the call was admitted. None is last.

        Raises:
            ResourceExhaustedError: the queue is full, which is known at once; or the job alone needs more memory than
                the device has.
            UnavailableError: the engine is broken, and several attempts to reopen it failed.
            DeadlineError: the deadline passed before the result was there, or would have.
        """
        if due is None:
            self.check_room(priority)
        self._check_engine()
        queue, queued = self._queues[priority], QueuedJob[JobT, ResultT](job, self.work.cost(job), deadline, due)
        self._check_deadline(queued, queue)
        queue.add(queued)
        self._scheduler.notify(self)
        try:
            async with asyncio.timeout_at(deadline):
                return await queued.future
        except TimeoutError:
            raise deadline_missed(self._name) from None
        finally:
            queue.remove(queued)

    async def close(self) -> None:
        """Stop computing and cancel the callers that still wait."""
        await self._scheduler.unregister(self)
        for queue in self._queues:
            queue.cancel_all()

    def expected_s(self, batch: Sequence[QueuedJob[JobT, ResultT]]) -> float:
        """Return the expected seconds of computing a batch."""
        return self.inference.seconds(self._queues[0].batch_cost(batch))

    async def run(
        self, priority: Priority, batch: Sequence[QueuedJob[JobT, ResultT]], inputs: Any | None, instance: Instance
    ) -> None:
        """Compute a batch that was removed from its queue and set its results; `inputs` None if not prepared."""
        try:
            await self._run(priority, batch, inputs, instance)
        except asyncio.CancelledError:
            for queued in batch:
                queued.future.cancel()
            raise
        except Exception as error:  # no other code would end these jobs
            log.exception("a batch of %d for %s failed unexpectedly", len(batch), self._name)
            for queued in batch:
                queued.fail(error)

    async def _run(
        self, priority: Priority, batch: Sequence[QueuedJob[JobT, ResultT]], inputs: Any | None, instance: Instance
    ) -> None:
        started = now()
        try:
            results = await instance.compute(self.work, [queued.job for queued in batch], inputs)
        except Exception as error:  # noqa: BLE001 - any error fails or retries the batch
            await self._retry_or_fail(priority, batch, error, instance)
            return
        seconds = now() - started
        for queued, result in zip(batch, results, strict=True):
            if not queued.future.done():
                queued.future.set_result(JobResult(result, started - queued.arrived, seconds))
        self.inference.record(self._queues[priority].batch_cost(batch), seconds)
        self._observer.record_batch(len(batch), seconds)

    async def _retry_or_fail(
        self, priority: Priority, batch: Sequence[QueuedJob[JobT, ResultT]], error: Exception, instance: Instance
    ) -> None:
        """Put a failed batch back, to be tried in halves; fail a job that failed alone.

        A job is tried as often as its batch can be halved, and once more if it failed alone on a broken engine.
        """
        works = await instance.probe(self.work)
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
        self._queues[priority].add(*retried)
        self._scheduler.notify(self)

    def _caller_error(self, error: Exception) -> Exception:
        if not isinstance(error, MemoryError):
            return error
        exhausted: RequestError = ResourceExhaustedError(
            Reason.MEMORY, f"{self._name} needs more memory for it than the device has; send less audio at once"
        )
        exhausted.__cause__ = error
        return exhausted

    def _check_engine(self) -> None:
        if self._recovery.failing or self._scheduler.failed.done():
            raise engine_unusable(self._name)

    def _check_deadline(self, queued: QueuedJob[JobT, ResultT], queue: PriorityQueue[JobT, ResultT]) -> None:
        """Refuse a job that would be late even if it were computed alone now."""
        needed, left = self.inference.seconds(queued.cost), queued.deadline - now()
        if left <= 0:
            raise deadline_missed(self._name)
        if left <= needed:
            if not self._scheduler.delay(queue):
                self.inference.decay()
            raise deadline_unmeetable(self._name, needed, left)

    def _on_recovery(self, _works: bool) -> None:
        if self._recovery.failing:
            for queue in self._queues:
                queue.fail_all(lambda: engine_unusable(self._name))
        self._scheduler.notify(self)
