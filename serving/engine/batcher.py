"""Queues in front of a device: what waits is computed together, and everyone gets their own answer.

Each `Batcher` is a bounded queue for one function of a `serving.engine.scheduler.Device`, a lane for each priority.
Nothing is computed for callers who have gone, or whose deadline has passed or would pass meanwhile; who would wait too
long is told at once. A batch that fails is split, so that one bad job does not fail its neighbours; where the engine is
to blame it is repaired, and the batch waits for that.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from speakerlens.serving.engine.latency import LatencyEstimator, OverrunEstimator
from speakerlens.serving.engine.priority import Priority
from speakerlens.serving.engine.queue import (
    JobResult,
    Observer,
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
    """A bounded queue for one function of a device.

    Args:
        name: for messages, such as `clean/1 explain`.
        work: what to compute, and what a job of it costs.
        device: where it runs; shared between batchers.
        bounds: of the queue and of the batches.
        observer: hears of every change.
        repair: of the engine that does the work; shared between the batchers of an engine.
    """

    def __init__(
        self,
        name: str,
        work: Work[JobT, ResultT],
        device: Scheduler,
        bounds: QueueLimits,
        observer: Observer,
        repair: EngineRecovery,
    ) -> None:
        self.work = work
        self._name = name
        self._device = device
        self._bounds = bounds
        self._observer = observer
        self._repair = repair
        self._pace = LatencyEstimator()
        self._turnover = LatencyEstimator()
        self._overruns = tuple(OverrunEstimator() for _ in Priority)
        self._lanes: tuple[PriorityQueue[JobT, ResultT], ...] = tuple(
            PriorityQueue(name, bounds, self._pace, self._turnover, observer) for _ in Priority
        )
        repair.subscribe(self._on_repair)
        device.attach(self)

    @property
    def lanes(self) -> Sequence[PriorityQueue[JobT, ResultT]]:
        """By priority; none while the engine is broken."""
        return () if self._repair.broken else self._lanes

    def check_room(self, deadline: float | None = None, priority: Priority = Priority.INTERACTIVE) -> None:
        """Refuses early, before any work is spent on a request that could not wait here.

        Each priority has room of its own, so that neither shuts the other out.

        Raises:
            UnavailableError: the engine is broken, and cannot be opened; or nothing is computed any more.
            ResourceExhaustedError: the queue is full, or runs so late that the deadline is at risk.
            DeadlineError: what waits already takes longer than the caller has.
        """
        if self._repair.failing or self._device.failed.done():
            raise engine_unusable(self._name)
        lane = self._lanes[priority]
        delay = self._device.delay(lane, priority, 0.0)
        if len(lane) >= self._bounds.waiting:
            raise ResourceExhaustedError(
                Reason.QUEUE_FULL,
                f"{self._bounds.waiting} requests wait for {self._name} already; try again later",
                delay,
            )
        if deadline is not None and delay:
            self._check_expected(priority, deadline - now(), delay, 0.0)

    async def submit(
        self, job: JobT, deadline: float | None = None, priority: Priority = Priority.INTERACTIVE
    ) -> JobResult[ResultT]:
        """Waits in the queue and on the device; a caller who is cancelled leaves the queue at once.

        Args:
            job: what to compute.
            deadline: on the clock of the event loop, or None.
            priority: whether somebody is waiting for the answer.

        Raises:
            ResourceExhaustedError: the queue is full or runs late, which is known at once; or the job alone needs too
                much memory.
            UnavailableError: the engine is broken, and attempts to open it anew were in vain.
            DeadlineError: the deadline passed before the answer was there, or would have.
        """
        self.check_room(None, priority)
        lane, entry = self._lanes[priority], QueuedJob[JobT, ResultT](job, self.work.cost(job), deadline)
        self._check_deadline(entry, priority)
        lane.add(entry)
        self._device.notify()
        try:
            async with asyncio.timeout_at(deadline):
                done = await entry.future
        except TimeoutError:
            self._learn(entry, priority)
            raise deadline_missed(self._name) from None
        except DeadlineError:
            self._learn(entry, priority)
            raise
        finally:
            lane.remove(entry)
        self._learn(entry, priority)
        return done

    async def close(self) -> None:
        """Stops taking from the queue. Callers still waiting are cancelled."""
        await self._device.detach(self)
        for lane in self._lanes:
            lane.clear()

    def expected(self, batch: Sequence[QueuedJob[JobT, ResultT]]) -> float:
        """Seconds that a batch will probably take."""
        return self._pace.seconds(self._lanes[0].batch_cost(batch))

    async def run(self, priority: Priority, batch: Sequence[QueuedJob[JobT, ResultT]], feed: Any | None) -> None:
        """Computes and answers a batch that was taken out of its lane, made ready where `feed` is not None."""
        try:
            await self._run(priority, batch, feed)
        except asyncio.CancelledError:
            for entry in batch:
                entry.future.cancel()
            raise
        except Exception as error:  # nobody else would answer these
            log.exception("answering a batch of %d for %s failed unexpectedly", len(batch), self._name)
            for entry in batch:
                entry.fail(error)

    async def _run(self, priority: Priority, batch: Sequence[QueuedJob[JobT, ResultT]], feed: Any | None) -> None:
        started = now()
        begun = self._device.begun(min(entry.arrived for entry in batch))
        try:
            results = await self._device.compute(self.work, [entry.job for entry in batch], feed)
        except Exception as error:
            await self._failed(priority, batch, error)
            return
        seconds = now() - started
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(JobResult(result, started - entry.arrived, seconds))
        self._pace.record(self._lanes[priority].batch_cost(batch), seconds)
        # What waits counts without padding, so that padding is part of what it takes.
        self._turnover.record(sum(entry.cost for entry in batch), now() - begun)
        self._observer.ran(len(batch), seconds)

    async def _failed(self, priority: Priority, batch: Sequence[QueuedJob[JobT, ResultT]], error: Exception) -> None:
        """Puts a failed batch back, to be tried in halves; one that failed alone is answered with its error.

        A job is tried as often as its batch can be halved, and once more if it failed alone on a broken engine.
        """
        works = await self._device.works(self.work)
        log.warning("a batch of %d for %s failed: %s", len(batch), self._name, error)
        if not works:
            self._repair.begin()
        again = []
        for entry in batch:
            if entry.future.done():
                continue
            if len(batch) == 1 and (works or entry.retried):
                entry.future.set_exception(self._told(error))
                continue
            entry.retried = len(batch) == 1
            entry.together = max(1, len(batch) // 2)
            again.append(entry)
        self._lanes[priority].put_back(again)

    def _told(self, error: Exception) -> Exception:
        if not isinstance(error, MemoryError):
            return error
        told: RequestError = ResourceExhaustedError(
            Reason.MEMORY, f"{self._name} needs more memory for it than the device has; send less audio at once"
        )
        told.__cause__ = error
        return told

    def _check_deadline(self, entry: QueuedJob[JobT, ResultT], priority: Priority) -> None:
        """Refuses a job that would be late, rather than let it wait for that."""
        needed = self._pace.seconds(entry.cost)
        delay = self._device.delay(self._lanes[priority], priority, needed)
        entry.expected = delay + needed
        left = entry.deadline - now()
        if left <= 0:
            raise deadline_missed(self._name)
        if left <= needed and not delay:
            self._pace.decay()
        self._check_expected(priority, left, delay, needed)

    def _check_expected(self, priority: Priority, left: float, delay: float, needed: float) -> None:
        """Raise an error where a job that waits `delay` and then takes `needed` would not be answered within `left`."""
        expected = delay + needed
        if left <= expected:
            raise deadline_unmeetable(self._name, delay, needed, left)
        # An idle device starts at once; only what waits can be late by what waits before it.
        at_worst = expected * self._overruns[priority].factor(now()) if delay else expected
        if left <= at_worst:
            raise deadline_at_risk(self._name, expected, at_worst, left)

    def _learn(self, entry: QueuedJob[JobT, ResultT], priority: Priority) -> None:
        """What became of an expectation; of those who were too late no more is known than that they were."""
        if entry.expected:
            self._overruns[priority].record(entry.expected, now() - entry.arrived, now())

    def _on_repair(self, _works: bool) -> None:
        if self._repair.failing:
            for lane in self._lanes:
                lane.refuse(lambda: engine_unusable(self._name))
        self._device.notify()
