"""Random histories of two batchers in virtual time: every job ends exactly once, with its own result or error.

With one instance and with several, which break together and are reopened together.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from speakerlens.serving.engine.queue import Priority, QueueLimits
from speakerlens.serving.engine.recovery import EngineRecovery
from speakerlens.serving.errors import DeadlineError, ResourceExhaustedError, UnavailableError
from tests.serving.engine.scene import Scene, Task, settle
from tests.serving.fakes import TimedWork
from tests.serving.virtual_time import VirtualLoop, current_loop

LIMITS = QueueLimits(max_waiting=5, max_batch=3, max_batch_cost=10**9)
SECONDS = st.floats(0.0, 5.0)


class BreakableWork(TimedWork):
    """Fails jobs whose number is a multiple of seven, and every job while `broken`; keeps the deadlines of jobs."""

    def __init__(self) -> None:
        super().__init__(compute_s=0.5, cost_s=0.01)
        self.broken = False
        self.deadlines: dict[int, float] = {}
        self.completed: list[int] = []

    def compute(self, inputs: list[int]) -> Sequence[int]:
        late = [number for number in inputs if self.deadlines[number] <= current_loop().time()]
        assert not late, f"{late} were computed after their deadlines"
        results = super().compute(inputs)
        if self.broken:
            raise OSError("broken")
        if any(number % 7 == 0 for number in inputs):
            raise ArithmeticError("a multiple of seven")
        self.completed += inputs
        return results

    def probe(self) -> None:
        if self.broken:
            raise OSError("broken")

    def reopen(self) -> None:
        current_loop().spend(1.0)
        self.broken = False


class EngineMachine(RuleBasedStateMachine):
    """Submits, cancels, waits and breaks the engine in any order."""

    instances = 1

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.work = BreakableWork()
        self.tasks: list[Task] = []
        self.cancelled: set[int] = set()
        self.scene: Scene = self.run(self.begin())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    async def begin(self) -> Scene:
        recovery = EngineRecovery("test", self.work.reopen, lambda _: None)
        return Scene(self.work, LIMITS, recovery, self.instances)

    async def end(self) -> None:
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=10_000)

    @rule(left=st.none() | SECONDS, priority=st.sampled_from(Priority), batcher=st.integers(0, 1))
    def submit(self, left: float | None, priority: Priority, batcher: int) -> None:
        number = len(self.tasks) + 1
        self.work.deadlines[number] = float("inf") if left is None else self.loop.time() + left
        self.tasks.append(self.run(self.scene.submit(number, left, priority, batcher)))

    @rule(index=st.integers(0, 100))
    def cancel(self, index: int) -> None:
        if index < len(self.tasks) and self.tasks[index].cancel():
            self.cancelled.add(index)

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule()
    def break_engine(self) -> None:
        self.work.broken = True

    @invariant()
    def queues_are_bounded(self) -> None:
        for batcher in self.scene.batchers:
            most = LIMITS.max_waiting + self.instances * LIMITS.max_batch
            assert all(len(queue) <= most for queue in batcher._queues)

    @invariant()
    def no_instance_is_lost(self) -> None:
        scheduler = self.scene.scheduler
        running = [each.instance for each in scheduler._running.values()]
        assert sorted(map(id, [*scheduler._free, *running])) == sorted(map(id, scheduler.instances))

    @invariant()
    def none_waits_while_an_instance_is_free(self) -> None:
        waiting = any(len(queue) for batcher in self.scene.batchers for queue in batcher.queues)
        self.run(settle())
        assert not (waiting and self.scene.scheduler._free) or not any(
            len(queue) for batcher in self.scene.batchers for queue in batcher.queues
        )

    def teardown(self) -> None:
        self.run(self.end())
        for number, task in enumerate(self.tasks, 1):
            if task.cancelled():
                assert number - 1 in self.cancelled
            elif (error := task.exception()) is None:
                assert task.result().result == -number
            elif isinstance(error, ArithmeticError):
                assert number % 7 == 0
            else:
                assert isinstance(error, DeadlineError | ResourceExhaustedError | UnavailableError | OSError)
        assert len(self.work.completed) == len(set(self.work.completed)), "a job was computed twice"
        assert self.work.depth == 0
        self.run(self.scene.close())
        self.loop.close()


class InstancesMachine(EngineMachine):
    """The same with three instances."""

    instances = 3


TestEngine = EngineMachine.TestCase
TestInstances = InstancesMachine.TestCase
TestEngine.settings = TestInstances.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
