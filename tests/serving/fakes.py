"""Work for schedulers that a test can hold, fail, time and inspect."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from speakerlens.serving.engine.recovery import EngineRecovery
from tests.serving.virtual_time import current_loop

PATIENCE_SECONDS = 20


@dataclass
class Recorder:
    """An observer and the work of a scheduler: the result of n is -n, and costs n + 1; the numbers in `poison` fail."""

    poison: frozenset[int] = frozenset()
    gate: threading.Event = field(default_factory=threading.Event)
    depth: int = 0
    deepest: int = 0
    measured: tuple[float, float] = (0.0, 0.0)
    prepared: list[list[int]] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def record_waiting(self, change: int) -> None:
        self.depth += change
        self.deepest = max(self.deepest, self.depth)

    def record_batch(self, size: int, seconds: float) -> None:
        self.batch_sizes.append(size)

    def cost(self, job: int) -> int:
        return job + 1

    def prepare(self, jobs: Sequence[int]) -> list[int]:
        self.prepared.append(list(jobs))
        return list(jobs)

    def compute(self, inputs: list[int]) -> Sequence[int]:
        assert self.gate.wait(PATIENCE_SECONDS)
        self.batches.append(inputs)
        if self.poison.intersection(inputs):
            raise ArithmeticError(f"poison in {inputs}")
        return [-number for number in inputs]

    def probe(self) -> None:
        pass


@dataclass
class TimedWork(Recorder):
    """The same in virtual time: seconds to prepare a batch, to compute it, and for each unit of its padded cost."""

    prepare_s: float = 0.0
    compute_s: float = 1.0
    cost_s: float = 0.0
    fixed_cost: int | None = None
    started: list[float] = field(default_factory=list)

    def cost(self, job: int) -> int:
        return self.fixed_cost or super().cost(job)

    def prepare(self, jobs: Sequence[int]) -> list[int]:
        current_loop().spend(self.prepare_s)
        return super().prepare(jobs)

    def compute(self, inputs: list[int]) -> Sequence[int]:
        self.started.append(current_loop().time())
        current_loop().spend(self.compute_s + self.cost_s * len(inputs) * (max(inputs) + 1))
        return super().compute(inputs)


def working() -> EngineRecovery:
    """Return the recovery of an engine that never breaks."""
    return EngineRecovery("test", lambda: pytest.fail("it is not broken"), lambda _: None)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that is bound to become true; in virtual time as well."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.0005)
