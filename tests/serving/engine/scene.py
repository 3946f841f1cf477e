"""A scheduler with two batchers in virtual time, for tests of order and deadlines."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.queue import JobResult, Priority, QueueLimits
from speakerlens.serving.engine.recovery import EngineRecovery
from speakerlens.serving.engine.scheduler import Scheduler
from tests.serving.fakes import TimedWork, working
from tests.serving.virtual_time import current_loop, run_virtual

LIMITS = QueueLimits(max_waiting=100, max_batch=4, max_batch_cost=10**9)
ONE_BY_ONE = QueueLimits(max_waiting=1000, max_batch=1, max_batch_cost=10**9)
Task = asyncio.Task[JobResult[int]]


class Scene:
    """Two batchers of one work on one scheduler; `log` holds the batches in the order in which they began."""

    def __init__(
        self, work: TimedWork, limits: QueueLimits, recovery: EngineRecovery | None, instances: int = 1
    ) -> None:
        self.work = work
        self.scheduler = Scheduler("test", instances)
        self.recovery = recovery or working()
        self.batchers = [
            Batcher[int, int](name, work, self.scheduler, limits, work, self.recovery) for name in ("test", "other")
        ]
        self.batcher = self.batchers[0]

    @property
    def log(self) -> list[list[int]]:
        return self.work.batches

    @property
    def time(self) -> float:
        return current_loop().time()

    async def submit(
        self, number: int, left: float | None = None, priority: Priority = Priority.INTERACTIVE, batcher: int = 0
    ) -> Task:
        """Submit a job with `left` seconds until its deadline; return its task once the job waits."""
        deadline = None if left is None else self.time + left
        task = asyncio.create_task(self.batchers[batcher].submit(number, deadline, priority))
        await asyncio.sleep(0)
        return task

    async def learn(self, number: int = 0) -> None:
        """Compute a job three times, so that estimates are known; clear the log."""
        for _ in range(3):
            await self.batcher.submit(number)
        await settle()
        for record in (self.work.batches, self.work.prepared, self.work.started, self.work.batch_sizes):
            record.clear()
        self.work.deepest = 0

    async def close(self) -> None:
        await self.recovery.close()
        for batcher in self.batchers:
            await batcher.close()
        self.scheduler.close()


async def settle() -> None:
    """Let everything happen that happens at this moment."""
    for _ in range(40):
        await asyncio.sleep(0)


def play(
    scenario: Callable[[Scene], Coroutine[Any, Any, None]],
    work: TimedWork | None = None,
    limits: QueueLimits = LIMITS,
    recovery: Callable[[], EngineRecovery] | None = None,
    instances: int = 1,
) -> None:
    """Run a scenario in virtual time."""

    async def main() -> None:
        scene = Scene(work or TimedWork(), limits, recovery() if recovery else None, instances)
        try:
            await asyncio.wait_for(scenario(scene), 100_000)
        finally:
            await scene.close()

    run_virtual(main())
