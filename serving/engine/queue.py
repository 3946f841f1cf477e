"""What waits in a queue at one priority, and how a batch is formed of it."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from speakerlens.serving.engine.latency import LatencyEstimator
from speakerlens.serving.errors import DeadlineError, Reason, ResourceExhaustedError, UnavailableError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

# A request waits for company no longer than this share of the time it has.
WAIT_SHARE = 0.1


def now() -> float:
    """Return the time in seconds on the running event loop's clock, by default that of `time.monotonic`."""
    return asyncio.get_running_loop().time()


class Observer(Protocol):
    """Hears what a batcher does."""

    def waiting(self, change: int) -> None:
        """The queue grew or shrank by `change`."""

    def ran(self, size: int, seconds: float) -> None:
        """A batch of `size` took `seconds` on the device."""


@dataclass(frozen=True)
class JobResult(Generic[ResultT]):
    """An answer, how long it waited for the device, and how long its batch ran, in seconds."""

    result: ResultT
    queue_s: float
    inference_s: float


def no_rounding(count: int) -> int:
    """No rounding of rows."""
    return count


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait, and how much may be computed together.

    A batch costs its rows times its dearest job, as all are padded to the longest; a single job may cost anything.

    Attributes:
        waiting: the most jobs of one priority that wait.
        batch: the most jobs of a batch.
        batch_cost: the most that several jobs together may cost.
        padding: the most of a batch's cost that may be padding, as a share.
        rows: how many rows are computed for so many jobs.
        wait_s: how long a job waits for company on an idle device, in seconds.
    """

    waiting: int
    batch: int
    batch_cost: int
    padding: float = 1.0
    rows: Callable[[int], int] = no_rounding
    wait_s: float = 0.0


class QueuedJob(Generic[JobT, ResultT]):
    """A job that waits for its answer; must be made on the event loop.

    Attributes:
        deadline: on the event loop's clock.
        together: the most jobs with which it may be computed; less once a batch with it has failed.
        retried: it failed alone, on an engine that was broken.
        expected: how many seconds after its arrival it should be answered, by what was known then; 0 if nothing was.
    """

    def __init__(self, job: JobT, cost: int, deadline: float | None) -> None:
        self.job = job
        self.cost = cost
        self.deadline = math.inf if deadline is None else deadline
        self.together: float = math.inf
        self.retried = False
        self.expected = 0.0
        self.arrived = now()
        self.future: asyncio.Future[JobResult[ResultT]] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        """Answers it with an error, unless it is answered."""
        if not self.future.done():
            self.future.set_exception(error)


class PriorityQueue(Generic[JobT, ResultT]):
    """Entries in the order of their arrival.

    Args:
        name: for messages.
        bounds: of the queue and of the batches.
        pace: how long the device computes.
        turnover: how long it takes from the end of one batch to the end of the next, where one waits.
        observer: hears of every change.
    """

    def __init__(
        self, name: str, bounds: QueueLimits, pace: LatencyEstimator, turnover: LatencyEstimator, observer: Observer
    ) -> None:
        self._name = name
        self._bounds = bounds
        self._pace = pace
        self._turnover = turnover
        self._observer = observer
        self._waiting: dict[int, QueuedJob[JobT, ResultT]] = {}
        self.cost = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def seconds(self) -> float:
        """How long all of it takes, cautiously estimated: who is let in behind it counts on that."""
        return self._turnover.cautious_seconds(self.cost)

    @property
    def oldest(self) -> float:
        """When the first arrived; infinity where nothing waits."""
        return next((entry.arrived for entry in self._waiting.values()), math.inf)

    def add(self, entry: QueuedJob[JobT, ResultT]) -> None:
        """Puts an entry last."""
        self._waiting[id(entry)] = entry
        self._count(1, entry.cost)

    def put_back(self, entries: Sequence[QueuedJob[JobT, ResultT]]) -> None:
        """Puts entries that were taken in front again."""
        self._waiting = {**{id(entry): entry for entry in entries}, **self._waiting}
        self._count(len(entries), sum(entry.cost for entry in entries))

    def remove(self, entry: QueuedJob[Any, Any]) -> None:
        """Takes an entry out, if it is in here."""
        if self._waiting.pop(id(entry), None) is not None:
            self._count(-1, -entry.cost)

    def clear(self) -> None:
        """Cancels all callers."""
        for entry in self._waiting.values():
            entry.future.cancel()

    def refuse(self, error: Callable[[], Exception]) -> None:
        """Answers all callers with an error."""
        for entry in self._waiting.values():
            entry.fail(error())

    def ready_at(self) -> float:
        """When a batch may be formed: now, once there is enough for one, or nobody should wait for more; or never."""
        if not self._waiting:
            return math.inf
        if not self._bounds.wait_s or len(self._waiting) >= self._bounds.batch:
            return -math.inf
        return min(
            entry.arrived + min(self._bounds.wait_s, WAIT_SHARE * (entry.deadline - entry.arrived))
            for entry in self._waiting.values()
        )

    def form(self) -> list[QueuedJob[JobT, ResultT]]:
        """The next batch, which stays in the lane; takes out who has gone, and who is or would be late.

        The oldest is always in it. Others join in the order of their arrival as far as the bounds and the deadlines of
        all in it allow; those that a batch failed with are tried among themselves.
        """
        batch: list[QueuedJob[JobT, ResultT]] = []
        for entry in list(self._waiting.values()):
            if entry.future.done() or self._refuse_late(entry):
                self.remove(entry)
            elif not batch or self._joins(batch, entry):
                batch.append(entry)
                if len(batch) >= min(self._bounds.batch, entry.together):
                    break
        return batch

    def batch_cost(self, batch: Sequence[QueuedJob[JobT, ResultT]]) -> int:
        """What computing these together costs."""
        return self._bounds.rows(len(batch)) * max(entry.cost for entry in batch)

    def _joins(self, batch: list[QueuedJob[JobT, ResultT]], entry: QueuedJob[JobT, ResultT]) -> bool:
        if entry.together != batch[0].together:
            return False
        together = [*batch, entry]
        cost = self.batch_cost(together)
        needed = sum(each.cost for each in together)
        if cost > self._bounds.batch_cost or cost - needed > self._bounds.padding * cost:
            return False
        return now() + self._pace.seconds(cost) < min(each.deadline for each in together)

    def _refuse_late(self, entry: QueuedJob[JobT, ResultT]) -> bool:
        """Answers an entry whose deadline has passed, or would even if it were computed alone; whether that is so."""
        left, needed = entry.deadline - now(), self._pace.seconds(entry.cost)
        if left > needed:
            return False
        entry.future.set_exception(
            deadline_missed(self._name) if left <= 0 else deadline_unmeetable(self._name, 0.0, needed, left)
        )
        return True

    def _count(self, entries: int, cost: int) -> None:
        self.cost += cost
        self._observer.waiting(entries)


def deadline_missed(name: str) -> DeadlineError:
    """A deadline that has passed."""
    return DeadlineError(Reason.DEADLINE, f"the deadline passed while waiting for {name}")


def deadline_unmeetable(name: str, delay: float, needed: float, left: float) -> DeadlineError:
    """Return the error of a job whose deadline is sooner than its expected answer; all times in seconds."""
    before = f"about {delay:.3g} s of work waits before it, " if delay else ""
    return DeadlineError(
        Reason.DEADLINE,
        f"the deadline cannot be met: {before}{name} takes about {needed:.3g} s, and {left:.3g} s are left",
    )


def deadline_at_risk(name: str, expected: float, at_worst: float, left: float) -> ResourceExhaustedError:
    """Return the error of a job that the estimate would allow, but whose queue runs late; all times in seconds."""
    return ResourceExhaustedError(
        Reason.DEADLINE,
        f"{name} is overloaded: an answer is expected in {expected:.3g} s but may take {at_worst:.3g} s, "
        f"and {left:.3g} s are left; try again later",
        expected,
    )


def engine_unusable(name: str) -> UnavailableError:
    """An engine that is broken for longer than callers should wait."""
    return UnavailableError(
        Reason.NOT_SERVING, f"the engine of {name} is broken and cannot be opened; try again, or ask another replica"
    )
