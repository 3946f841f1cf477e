"""Work beside the requests: only on an idle device, one at a time, dropped first, and never lost."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.queue import Priority, QueueLimits
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.errors import DeadlineError, Reason, ResourceExhaustedError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.robustness import sampling
from speakerlens.serving.robustness.observer import Sampler
from speakerlens.serving.robustness.sampling import MOST_WAITING, Background, IdleSlot, Sample
from tests.serving.fakes import Recorder, until, working

SAMPLE = Sample(np.zeros(1600, np.float32), (), None, None)


class World:
    """A device with one queue, and work beside it; what was done is noted."""

    def __init__(self) -> None:
        self.scheduler, self.work, self.metrics = Scheduler("test"), Recorder(), Metrics()
        bounds = QueueLimits(max_waiting=10, max_batch=1, max_batch_cost=10**9)
        self.queue = Batcher[int, int]("a", self.work, self.scheduler, bounds, self.work, working())
        self.background = Background(self.scheduler, self.metrics.robustness)
        self.done: list[int] = []

    def offer(self, number: int, doing: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        async def note(_sample: Sample, slot: IdleSlot) -> None:
            await slot.idle()
            if doing is not None:
                await doing()
            self.done.append(number)

        self.background.offer("saliency", note, SAMPLE)

    def count(self, outcome: str) -> float:
        labels = {"work": "saliency", "outcome": outcome}
        return self.metrics.registry.get_sample_value("speakerlens_background_total", labels) or 0.0

    @property
    def counts(self) -> tuple[float, float, float]:
        return self.count("done"), self.count("dropped"), self.count("failed")

    async def busy(self, number: int) -> "asyncio.Task[Any]":
        """Keeps the device busy until the gate is opened."""
        self.work.gate.clear()
        task = asyncio.create_task(self.queue.submit(number))
        await until(lambda: bool(self.scheduler._running))
        return task


def play(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        world = World()
        try:
            await scenario(world)
        finally:
            world.work.gate.set()
            await world.background.close()
            await world.queue.close()
            world.scheduler.close()

    asyncio.run(run())


def test_the_sampler_chooses_its_share() -> None:
    assert not any(Sampler(0.0, lambda: 0.0).sample() for _ in range(10))
    assert all(Sampler(1.0, lambda: 0.999).sample() for _ in range(10))
    lots = Sampler(0.25, random.Random(7).random)  # noqa: S311
    drawn = [lots.sample() for _ in range(4000)]
    assert 900 < sum(drawn) < 1100
    same = Sampler(0.25, random.Random(7).random)  # noqa: S311
    assert drawn == [same.sample() for _ in range(4000)]


def test_no_sample_starts_while_the_device_is_busy() -> None:
    async def scenario(world: World) -> None:
        answer = await world.busy(1)
        world.offer(0)
        await asyncio.sleep(10 * sampling.POLL_SECONDS)
        assert world.done == []
        world.work.gate.set()
        await answer
        await until(lambda: world.done == [0])
        assert world.counts == (1, 0, 0)

    play(scenario)


def test_samples_run_one_at_a_time_in_order() -> None:
    async def scenario(world: World) -> None:
        go_on, begun = asyncio.Event(), []

        async def wait() -> None:
            begun.append(1)
            await go_on.wait()

        for number in range(3):
            world.offer(number, wait)
        await until(lambda: bool(begun))
        await asyncio.sleep(5 * sampling.POLL_SECONDS)
        assert len(begun) == 1
        go_on.set()
        await until(lambda: world.done == [0, 1, 2])
        world.offer(3)  # also after the worker has had nothing to do
        await until(lambda: world.done == [0, 1, 2, 3])
        assert world.counts == (4, 0, 0)

    play(scenario)


def test_work_beyond_the_bound_is_dropped_and_counted() -> None:
    async def scenario(world: World) -> None:
        answer = await world.busy(1)
        for number in range(MOST_WAITING + 3):
            world.offer(number)
        assert world.counts == (0, 3, 0)
        world.work.gate.set()
        await answer
        await until(lambda: world.count("done") == MOST_WAITING)
        assert world.done == list(range(MOST_WAITING))

    play(scenario)


def test_a_sample_that_waits_too_long_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_WAIT_SECONDS", 0.05)

    async def scenario(world: World) -> None:
        answer = await world.busy(1)
        for number in range(3):
            world.offer(number)
        await until(lambda: world.counts == (0, 3, 0))
        world.work.gate.set()
        await answer
        assert world.done == []

    play(scenario)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ResourceExhaustedError(Reason.QUEUE_FULL, "full"), "dropped"),
        (DeadlineError(Reason.DEADLINE, "late"), "dropped"),
        (ResourceExhaustedError(Reason.MEMORY, "too much"), "failed"),
        (ArithmeticError("poison"), "failed"),
    ],
)
def test_a_failed_sample_is_counted_and_the_next_runs(error: Exception, outcome: str) -> None:
    async def scenario(world: World) -> None:
        async def fail() -> None:
            raise error

        world.offer(0, fail)
        world.offer(1)
        await until(lambda: world.done == [1])
        assert world.count(outcome) == 1
        assert sum(world.counts) == 2

    play(scenario)


def test_closing_drops_and_counts_all_samples() -> None:
    async def scenario(world: World) -> None:
        begun = asyncio.Event()

        async def forever() -> None:
            begun.set()
            await asyncio.Event().wait()

        for number in range(3):
            world.offer(number, forever)
        await begun.wait()
        await world.background.close()
        assert world.counts == (0, 3, 0)
        await world.background.close()
        assert world.counts == (0, 3, 0)

    play(scenario)


def test_a_device_with_bulk_work_is_not_idle() -> None:
    async def scenario(world: World) -> None:
        assert world.scheduler.idle
        answer = await world.busy(1)
        waiting = asyncio.create_task(world.queue.submit(2, priority=Priority.BULK))
        await asyncio.sleep(0)
        assert not world.scheduler.idle
        world.work.gate.set()
        await asyncio.gather(answer, waiting)
        await until(lambda: world.scheduler.idle)

    play(scenario)
