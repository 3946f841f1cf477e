"""Work for devices that a test can hold, fail and look into."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from speakerlens.serving.engine.recovery import EngineRecovery

PATIENCE_SECONDS = 20


@dataclass
class Recorder:
    """An observer, and the work of a device: the answer to n is -n, and costs n + 1; some numbers fail."""

    poison: frozenset[int] = frozenset()
    gate: threading.Event = field(default_factory=threading.Event)
    depth: int = 0
    deepest: int = 0
    batches: list[list[int]] = field(default_factory=list)
    ran_sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def record_waiting(self, change: int) -> None:
        self.depth += change
        self.deepest = max(self.deepest, self.depth)

    def record_batch(self, size: int, seconds: float) -> None:
        self.ran_sizes.append(size)

    def cost(self, job: int) -> int:
        return job + 1

    def prepare(self, jobs: Sequence[int]) -> list[int]:
        return list(jobs)

    def compute(self, feed: list[int]) -> Sequence[int]:
        assert self.gate.wait(PATIENCE_SECONDS)
        self.batches.append(feed)
        if self.poison.intersection(feed):
            raise ArithmeticError(f"poison in {feed}")
        return [-number for number in feed]

    def probe(self) -> None:
        pass


def working() -> EngineRecovery:
    """Of an engine that never breaks."""
    return EngineRecovery("test", lambda: pytest.fail("it is not broken"), lambda _: None)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that is bound to happen."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.0005)
