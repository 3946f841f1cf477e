"""Jobs that wait at one priority, in the order in which their calls are due, and the batches formed of them."""

import asyncio
import itertools
import math
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Generic, Protocol, TypeVar

from speakerlens.serving.errors import DeadlineError, Reason, UnavailableError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

# Weight of older measurements for each newer one, and where one is far below the estimate: what made it high is over.
MEMORY, DROP_MEMORY = 0.7, 0.3
# A measurement counts as at most this multiple of the estimate, or as OUTLIER_SECONDS if that is more, so that one
# pause of the process cannot refuse callers for long; a device that really became slower is followed in a few batches.
# Below the estimate by the same factor, it counts as far below.
OUTLIER_RATIO: Final = 4.0
OUTLIER_SECONDS = 0.01
# A refusal measures nothing, so each lowers the estimate: one slow batch must not shut an idle server for good.
REFUSAL_DECAY = 0.9


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
        max_waiting: requests of one priority that wait.
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


class Estimate:
    """Exponentially weighted mean of seconds per unit of cost.

    Without a first figure, the first measurement alone is not used, as it may include a pause; of the first two the
    faster counts.

    Args:
        cost: of a first measurement, 0 for none.
        seconds: that it took.
    """

    def __init__(self, cost: float = 0.0, seconds: float = 0.0) -> None:
        # Sums rather than a mean of rates, because a short batch is mostly overhead.
        self._cost, self._seconds = cost, seconds
        self._first: tuple[float, float] | None = None

    def record(self, cost: float, seconds: float) -> None:
        """Record that work of this cost took `seconds`; without a positive cost nothing is learned."""
        if cost <= 0:
            return
        if self._cost:
            estimate = self.seconds(cost)
            seconds = min(seconds, max(OUTLIER_RATIO * estimate, OUTLIER_SECONDS))
            memory = DROP_MEMORY if seconds < estimate / OUTLIER_RATIO else MEMORY
            self._seconds = memory * self._seconds + seconds
            self._cost = memory * self._cost + cost
        elif self._first is None:
            self._first = cost, seconds
        else:
            self._cost, self._seconds = min(self._first, (cost, seconds), key=lambda each: each[1] / each[0])

    def seconds(self, cost: float) -> float:
        """Return the expected seconds of work of this cost; 0 before the second measurement."""
        return cost * self._seconds / self._cost if self._cost else 0.0

    def decay(self) -> None:
        """Lower the estimate after a refusal that was due to it while nothing ran that could correct it."""
        self._seconds *= REFUSAL_DECAY


class QueuedJob(Generic[JobT, ResultT]):
    """A job and the future of its result; must be made on the event loop.

    Attributes:
        deadline: on the event loop's clock; infinity for none.
        due: when its call should be answered; infinity for jobs that are taken in the order of their arrival, last.
        max_batch: most jobs of a batch that it may be in; less once a batch with it has failed.
        retried: whether it failed alone on a broken engine.
    """

    _numbers = itertools.count()

    def __init__(self, job: JobT, cost: int, deadline: float | None, due: float | None = None) -> None:
        self.job = job
        self.cost = cost
        self.deadline = math.inf if deadline is None else deadline
        self.due = math.inf if due is None else due
        self.max_batch: float = math.inf
        self.retried = False
        self.arrived = now()
        self.future: asyncio.Future[JobResult[ResultT]] = asyncio.get_running_loop().create_future()
        self._number = next(self._numbers)

    @property
    def order(self) -> tuple[bool, float, int]:
        """Return its place in a queue: jobs of a failed batch come first."""
        return self.max_batch == math.inf, self.due, self._number

    def fail(self, error: Exception) -> None:
        """Set the error, unless the job has a result or error already."""
        if not self.future.done():
            self.future.set_exception(error)


class PriorityQueue(Generic[JobT, ResultT]):
    """Jobs of one priority in the order in which their calls are due, then of their arrival.

    Args:
        name: for messages.
        limits: of the queue and of the batches.
        inference: estimates how long a batch is computed.
        observer: receives every change of length.
    """

    def __init__(self, name: str, limits: QueueLimits, inference: Estimate, observer: Observer) -> None:
        self._name = name
        self._limits = limits
        self._inference = inference
        self._observer = observer
        self._jobs: list[QueuedJob[JobT, ResultT]] = []

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def requests(self) -> int:
        """Return how many requests wait: the jobs of an admitted call are one."""
        return len({id(queued) if queued.due == math.inf else queued.due for queued in self._jobs})

    @property
    def expected_s(self) -> float:
        """Return the expected seconds until all waiting jobs are computed."""
        return self._inference.seconds(sum(queued.cost for queued in self._jobs))

    def expected_before(self, due: float) -> float:
        """Return the expected seconds until the waiting jobs that are due by then are computed."""
        return self._inference.seconds(sum(queued.cost for queued in self._jobs if queued.due <= due))

    @property
    def oldest_arrival(self) -> float:
        """When the first job arrived; infinity for an empty queue."""
        return min((queued.arrived for queued in self._jobs), default=math.inf)

    @property
    def due(self) -> float:
        """When the first job's call is due; infinity for an empty queue."""
        return self._jobs[0].due if self._jobs else math.inf

    def add(self, *jobs: QueuedJob[JobT, ResultT]) -> None:
        """Add jobs, each in its place."""
        for queued in jobs:
            insort(self._jobs, queued, key=lambda each: each.order)
        self._observer.record_waiting(len(jobs))

    def remove(self, queued: QueuedJob[Any, Any]) -> None:
        """Remove a job if it waits here."""
        if queued in self._jobs:
            self._jobs.remove(queued)
            self._observer.record_waiting(-1)

    def cancel_all(self) -> None:
        """Cancel the futures of all jobs; their callers remove them."""
        for queued in self._jobs:
            queued.future.cancel()

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """Fail every job with an error of its own; their callers remove them."""
        for queued in self._jobs:
            queued.fail(make_error())

    def form_batch(self) -> list[QueuedJob[JobT, ResultT]]:
        """Return the next batch, whose jobs stay in the queue; remove jobs that are done, and refuse those too late.

        The first job is always in the batch. Others join in order as far as the limits and the deadlines of all in the
        batch allow. Jobs of a failed batch join only each other.
        """
        batch: list[QueuedJob[JobT, ResultT]] = []
        for queued in list(self._jobs):
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
        queued.fail(deadline_missed(self._name) if left <= 0 else deadline_unmeetable(self._name, needed, left))
        return True


def deadline_missed(name: str) -> DeadlineError:
    """Return the error of a job whose deadline has passed."""
    return DeadlineError(Reason.DEADLINE, f"the deadline passed while waiting for {name}")


def deadline_unmeetable(name: str, needed: float, left: float) -> DeadlineError:
    """Return the error of a job whose deadline is sooner than its expected result; all times in seconds."""
    return DeadlineError(
        Reason.DEADLINE, f"the deadline cannot be met: {name} takes about {needed:.3g} s, and {left:.3g} s are left"
    )


def engine_unusable(name: str) -> UnavailableError:
    """Return the error of jobs for an engine that is broken for longer than callers should wait."""
    return UnavailableError(
        Reason.NOT_SERVING, f"the engine of {name} is broken and cannot be opened; try again, or ask another replica"
    )
