"""Whether who is let in is answered in time, where waiting takes longer than computing lets one think."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.queue import QueueLimits
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.errors import DeadlineError, ResourceExhaustedError
from tests.serving.fakes import Recorder, working
from tests.serving.virtual_time import current_loop, run_virtual

PREPARING_SECONDS, COMPUTING_SECONDS = 0.04, 0.01
DEADLINE_SECONDS = 1.0


class Slow(Recorder):
    """One batch can be made in the time of four that are computed, so that a queue takes four times what they take."""

    def prepare(self, jobs: Sequence[int]) -> list[int]:
        current_loop().spend(PREPARING_SECONDS)
        return super().prepare(jobs)

    def compute(self, feed: list[int]) -> Sequence[int]:
        current_loop().spend(COMPUTING_SECONDS)
        return super().compute(feed)


def test_who_is_let_in_is_answered_in_time() -> None:
    """Six times as much as can be done; at first nothing is known."""
    outcomes: list[str] = []

    async def ask(batcher: "Batcher[int, int]") -> None:
        started = current_loop().time()
        try:
            await batcher.submit(0, started + DEADLINE_SECONDS)
            outcomes.append("answered")
        except (DeadlineError, ResourceExhaustedError):
            outcomes.append("refused" if current_loop().time() - started < 0.5 * DEADLINE_SECONDS else "late")

    async def main() -> None:
        work, device = Slow(), Scheduler("test")
        batcher = Batcher[int, int]("test", work, device, QueueLimits(1000, 1, 10**9), work, working())
        until = current_loop().time() + 5 * DEADLINE_SECONDS
        callers = []
        while current_loop().time() < until:
            callers.append(asyncio.create_task(ask(batcher)))
            await asyncio.sleep(PREPARING_SECONDS / 6)
        await asyncio.gather(*callers)
        await batcher.close()
        device.close()

    run_virtual(main())
    later = outcomes[len(outcomes) // 2 :]
    assert later.count("answered") > 20
    assert later.count("refused") > later.count("answered")
    assert later.count("late") < 0.4 * later.count("answered")


def test_expectations_that_came_true_late_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody waits twice as long as expected, for whatever reason."""
    expected: list[float] = []
    delay = Scheduler.delay

    def half(*arguments: Any) -> float:
        expected.append(0.5 * delay(*arguments))
        return expected[-1]

    monkeypatch.setattr(Scheduler, "delay", half)

    async def main() -> None:
        work, device = Slow(), Scheduler("test")
        batcher = Batcher[int, int]("test", work, device, QueueLimits(1000, 1, 10**9), work, working())
        for _ in range(4):
            await asyncio.gather(*(batcher.submit(0) for _ in range(8)))
        waiting = [asyncio.create_task(batcher.submit(0)) for _ in range(12)]
        await asyncio.sleep(0)
        started = current_loop().time()
        with pytest.raises(ResourceExhaustedError, match="test is overloaded") as caught:
            await batcher.submit(0, started + 1.4 * (max(expected) + COMPUTING_SECONDS))
        assert current_loop().time() == started, "refused at once"
        assert caught.value.retry_after_s == pytest.approx(max(expected), abs=COMPUTING_SECONDS + 0.001)
        await asyncio.gather(*waiting)
        await batcher.close()
        device.close()

    run_virtual(main())
