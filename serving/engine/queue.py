"""Jobs that wait at one priority, and the batches formed of them."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Generic, Protocol, TypeVar

from speakerlens.serving.engine.latency import LatencyEstimator
from speakerlens.serving.errors import DeadlineError, Reason, ResourceExhaustedError, UnavailableError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


def now() -> float:
    """Return the time in seconds on the running event loop's clock, by default that of `time.monotonic`."""
    return asyncio.get_running_loop().time()


class Priority(IntEnum):
    """Order in which jobs are scheduled; lower is sooner.

    An INTERACTIVE job waits for at most one batch of BULK jobs, and a BULK job is computed in bounded time.
    """

    INTERACTIVE = 0
    BULK = 1


class Observer(Protocol):
    """Receives what a batcher does, for metrics."""

    def record_waiting(self, change: int) -> None:
        """Record that the queue grew by `change` jobs, or shrank if negative."""

    def record_batch(self, size: int, seconds: float) -> None:
        """Record that a batch of `size` jobs took `seconds` on the device."""


@dataclass(frozen=True)
class JobResult(Generic[ResultT]):
    """A result, with the seconds that the job waited in the queue and the seconds that its batch was computed."""

    result: ResultT
    queue_s: float
    inference_s: float


def no_rounding(count: int) -> int:
    """Return the number of rows as it is."""
    return count


@dataclass(frozen=True)
class QueueLimits:
    """How many jobs may wait, and how many may be computed together.

    A batch costs its rows times its dearest job, as all are padded to the longest; a single job may cost anything.

    Attributes:
        max_waiting: jobs of one priority that wait.
        max_batch: jobs of a batch.
        max_batch_cost: cost of a batch of several jobs.
        max_padding: padding of a batch of several jobs, as a share of its cost.
        rows: number of rows that are computed for a number of jobs.
    """

    max_waiting: int
    max_batch: int
    max_batch_cost: int
    max_padding: float = 1.0
    rows: Callable[[int], int] = no_rounding


class QueuedJob(Generic[JobT, ResultT]):
    """A job and the future of its result; must be made on the event loop.

    Attributes:
        deadline: on the event loop's clock; infinity for none.
        max_batch: most jobs of a batch that it may be in; less once a batch with it has failed.
        retried: whether it failed alone on a broken engine.
        expected_s: seconds from its arrival to its result, as estimated on arrival; 0 if nothing was known.
    """

    def __init__(self, job: JobT, cost: int, deadline: float | None) -> None:
        self.job = job
        self.cost = cost
        self.deadline = math.inf if deadline is None else deadline
        self.max_batch: float = math.inf
        self.retried = False
        self.expected_s = 0.0
        self.arrived = now()
        self.future: asyncio.Future[JobResult[ResultT]] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        """Set the error, unless the job has a result or error already."""
        if not self.future.done():
            self.future.set_exception(error)


class PriorityQueue(Generic[JobT, ResultT]):
    """Jobs of one priority in the order of their arrival.

    Args:
        name: for messages.
        limits: of the queue and of the batches.
        inference: estimates how long a batch is computed.
        turnaround: estimates how long it takes from the end of one batch to the end of the next, while jobs wait.
        observer: receives every change of length.
    """

    def __init__(
        self,
        name: str,
        limits: QueueLimits,
        inference: LatencyEstimator,
        turnaround: LatencyEstimator,
        observer: Observer,
    ) -> None:
        self._name = name
        self._limits = limits
        self._inference = inference
        self._turnaround = turnaround
        self._observer = observer
        self._jobs: dict[int, QueuedJob[JobT, ResultT]] = {}
        self.cost = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def expected_s(self) -> float:
        """Cautious estimate of the seconds until all waiting jobs are computed."""
        return self._turnaround.cautious_seconds(self.cost)

    @property
    def oldest_arrival(self) -> float:
        """When the first job arrived; infinity for an empty queue."""
        return next((queued.arrived for queued in self._jobs.values()), math.inf)

    def add(self, queued: QueuedJob[JobT, ResultT]) -> None:
        """Put a job last."""
        self._jobs[id(queued)] = queued
        self._count(1, queued.cost)

    def put_back(self, batch: Sequence[QueuedJob[JobT, ResultT]]) -> None:
        """Put jobs that were removed first again, in their order."""
        self._jobs = {**{id(queued): queued for queued in batch}, **self._jobs}
        self._count(len(batch), sum(queued.cost for queued in batch))

    def remove(self, queued: QueuedJob[Any, Any]) -> None:
        """Remove a job if it waits here."""
        if self._jobs.pop(id(queued), None) is not None:
            self._count(-1, -queued.cost)

    def cancel_all(self) -> None:
        """Cancel the futures of all jobs; their callers remove them."""
        for queued in self._jobs.values():
            queued.future.cancel()

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """Fail every job with an error of its own; their callers remove them."""
        for queued in self._jobs.values():
            queued.fail(make_error())

    def form_batch(self) -> list[QueuedJob[JobT, ResultT]]:
        """Return the next batch, whose jobs stay in the queue; remove jobs that are done, and refuse those too late.

        The oldest job is always in the batch. Others join in the order of their arrival as far as the limits and the
        deadlines of all in the batch allow. Jobs of a failed batch join only each other.
        """
        batch: list[QueuedJob[JobT, ResultT]] = []
        for queued in list(self._jobs.values()):
            if queued.future.done() or self._refuse_late(queued):
                self.remove(queued)
            elif not batch or self._may_join(batch, queued):
                batch.append(queued)
                if len(batch) >= min(self._limits.max_batch, queued.max_batch):
                    break
        return batch

    def batch_cost(self, batch: Sequence[QueuedJob[JobT, ResultT]]) -> int:
        """Return the cost of computing jobs together, padding included."""
        return self._limits.rows(len(batch)) * max(queued.cost for queued in batch)

    def _may_join(self, batch: list[QueuedJob[JobT, ResultT]], queued: QueuedJob[JobT, ResultT]) -> bool:
        if queued.max_batch != batch[0].max_batch:
            return False
        together = [*batch, queued]
        cost = self.batch_cost(together)
        padding = cost - sum(each.cost for each in together)
        if cost > self._limits.max_batch_cost or padding > self._limits.max_padding * cost:
            return False
        return now() + self._inference.seconds(cost) < min(each.deadline for each in together)

    def _refuse_late(self, queued: QueuedJob[JobT, ResultT]) -> bool:
        """Fail a job that would miss its deadline even if it were computed alone now; return whether that is so."""
        left, needed = queued.deadline - now(), self._inference.seconds(queued.cost)
        if left > needed:
            return False
        queued.fail(deadline_missed(self._name) if left <= 0 else deadline_unmeetable(self._name, 0.0, needed, left))
        return True

    def _count(self, jobs: int, cost: int) -> None:
        self.cost += cost
        self._observer.record_waiting(jobs)


def deadline_missed(name: str) -> DeadlineError:
    """Return the error of a job whose deadline has passed."""
    return DeadlineError(Reason.DEADLINE, f"the deadline passed while waiting for {name}")


def deadline_unmeetable(name: str, delay: float, needed: float, left: float) -> DeadlineError:
    """Return the error of a job whose deadline is sooner than its expected result; all times in seconds."""
    before = f"about {delay:.3g} s of work waits before it, " if delay else ""
    return DeadlineError(
        Reason.DEADLINE,
        f"the deadline cannot be met: {before}{name} takes about {needed:.3g} s, and {left:.3g} s are left",
    )


def deadline_at_risk(name: str, expected: float, at_worst: float, left: float) -> ResourceExhaustedError:
    """Return the error of a job that the estimate would allow, but whose queue runs late; all times in seconds."""
    return ResourceExhaustedError(
        Reason.QUEUE_FULL,
        f"{name} is overloaded: an answer is expected in {expected:.3g} s but may take {at_worst:.3g} s, "
        f"and {left:.3g} s are left; try again later",
        expected,
    )


def engine_unusable(name: str) -> UnavailableError:
    """Return the error of jobs for an engine that is broken for longer than callers should wait."""
    return UnavailableError(
        Reason.NOT_SERVING, f"the engine of {name} is broken and cannot be opened; try again, or ask another replica"
    )
