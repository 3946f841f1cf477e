"""The scheduler of a device: priorities over all of its queues, and the next batch prepared while one runs."""

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerlens.serving.engine.queue import Priority, QueueLimits
from speakerlens.serving.engine.scheduler import INTERACTIVE_PER_BULK, Scheduler
from speakerlens.serving.errors import DeadlineError
from tests.serving.engine.scene import ONE_BY_ONE, Scene, Task, play, settle
from tests.serving.fakes import Recorder, TimedWork, until
from tests.serving.virtual_time import current_loop

ARRIVAL = st.tuples(st.integers(0, 1), st.sampled_from(Priority))
BATCH_SECONDS = 1.0


class Arrivals:
    """Numbered jobs of a scene whose batches take BATCH_SECONDS, with what was computed before they arrived."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.tasks: list[Task] = []
        self.priorities: list[Priority] = []
        self.arrived: list[int] = []

    async def submit(self, batcher: int, priority: Priority) -> int:
        await settle()  # a batch that was started is in the log
        running = len(self.scene.scheduler._running)
        self.arrived.append(len(self.scene.log) - running)
        self.priorities.append(priority)
        self.tasks.append(await self.scene.submit(len(self.tasks), None, priority, batcher))
        return len(self.tasks) - 1

    def bulk_before(self, number: int) -> int:
        """Return how many bulk batches ran between a job's arrival and its own batch."""
        [index] = [index for index, batch in enumerate(self.scene.log) if number in batch]
        before = self.scene.log[self.arrived[number] : index]
        return sum(self.priorities[batch[0]] is Priority.BULK for batch in before)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(ARRIVAL, max_size=4), min_size=1, max_size=15), st.integers(1, 3))
def test_bulk_delays_interactive_by_one_batch_at_most(arrivals: list[list[tuple[int, Priority]]], batch: int) -> None:
    async def scenario(scene: Scene) -> None:
        jobs = Arrivals(scene)
        for together in arrivals:
            for batcher, priority in together:
                await jobs.submit(batcher, priority)
            await asyncio.sleep(BATCH_SECONDS)
            await settle()
        for number, result in enumerate(await asyncio.gather(*jobs.tasks)):
            assert result.result == -number
            assert jobs.priorities[number] is Priority.BULK or jobs.bulk_before(number) <= 1
        for computed in scene.log:
            assert len(computed) <= batch
            assert len({jobs.priorities[number] for number in computed}) == 1

    play(scenario, limits=QueueLimits(max_waiting=1000, max_batch=batch, max_batch_cost=10**9))


def test_bulk_is_not_starved_by_endless_interactive_work() -> None:
    waiting, bulk_jobs = 3, 4

    async def scenario(scene: Scene) -> None:
        jobs = Arrivals(scene)
        bulk = [await jobs.submit(0, Priority.BULK) for _ in range(bulk_jobs)]
        interactive = [await jobs.submit(number % 2, Priority.INTERACTIVE) for number in range(waiting)]
        rounds = 0
        while not all(jobs.tasks[number].done() for number in bulk):
            interactive.append(await jobs.submit(rounds % 2, Priority.INTERACTIVE))
            await asyncio.sleep(BATCH_SECONDS)
            await settle()
            rounds += 1
            assert rounds <= bulk_jobs * (INTERACTIVE_PER_BULK + waiting + 2)
        assert max(jobs.bulk_before(number) for number in interactive if jobs.tasks[number].done()) == 1
        for task in jobs.tasks:
            task.cancel()

    play(scenario, limits=ONE_BY_ONE)


def test_a_bulk_batch_runs_after_four_interactive_ones() -> None:
    async def scenario(scene: Scene) -> None:
        jobs = Arrivals(scene)
        await jobs.submit(0, Priority.INTERACTIVE)
        await settle()
        await jobs.submit(0, Priority.BULK)
        for _ in range(6):
            await jobs.submit(0, Priority.INTERACTIVE)
        await asyncio.gather(*jobs.tasks)
        assert scene.log == [[0], [2], [3], [4], [5], [1], [6], [7]]

    play(scenario, limits=ONE_BY_ONE)


def test_interactive_work_comes_before_a_prepared_bulk_batch() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.learn()
        tasks = [await scene.submit(1, priority=Priority.BULK)]
        await settle()
        tasks.append(await scene.submit(2, priority=Priority.BULK))
        await asyncio.sleep(0.9985)
        assert [2] in scene.work.prepared
        assert scene.log == [[1]], "the second is not running yet"
        tasks.append(await scene.submit(3, batcher=1))
        await asyncio.gather(*tasks)
        assert scene.log == [[1], [3], [2]]

    play(scenario, TimedWork(fixed_cost=1), ONE_BY_ONE)


def test_the_next_batch_is_prepared_just_before_it_is_needed() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.learn()
        numbers = list(range(1, 13))
        await asyncio.gather(*[await scene.submit(number) for number in numbers])
        assert scene.log == scene.work.prepared == [[number] for number in numbers], "each is prepared once"
        *_, last_but_one, last = scene.work.started
        assert abs(last - last_but_one - 1.0) < 0.02, "the last was not prepared beside the one before"

    play(scenario, TimedWork(prepare_s=0.1, fixed_cost=1), ONE_BY_ONE)


def test_a_job_that_arrives_after_preparing_still_joins() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.learn()
        tasks = [await scene.submit(1)]
        await settle()
        tasks.append(await scene.submit(2))
        await asyncio.sleep(0.9985)
        assert [2] in scene.work.prepared
        tasks.append(await scene.submit(3))
        tasks[1].cancel()
        tasks.append(await scene.submit(4))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert scene.log == [[1], [3, 4]]

    play(scenario, TimedWork(fixed_cost=1), QueueLimits(max_waiting=1000, max_batch=2, max_batch_cost=10**9))


def test_the_next_batch_is_not_formed_long_before_it_is_needed() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.learn()
        tasks = [await scene.submit(1)]
        await settle()
        tasks.append(await scene.submit(2))
        await asyncio.sleep(0.9)
        tasks.append(await scene.submit(3))
        await asyncio.gather(*tasks)
        assert scene.work.prepared == scene.log == [[1], [2, 3]]

    play(scenario, TimedWork(fixed_cost=1))


def test_a_slow_preparation_is_forgotten() -> None:
    """One that takes 0.5 s makes the next begin that much sooner, and later ones again just in time."""
    begun: list[float] = []

    class Work(TimedWork):
        def prepare(self, jobs: Sequence[int]) -> list[int]:
            begun.append(current_loop().time())
            return super().prepare(jobs)

    async def scenario(scene: Scene) -> None:
        await scene.learn()
        begun.clear()
        for number in range(20):
            scene.work.prepare_s = 0.5 if number == 1 else 0.0
            await asyncio.gather(*[await scene.submit(number), await scene.submit(number)])
        ahead = [start - prepared for start, prepared in zip(scene.work.started, begun, strict=True)][1::2]
        assert ahead[2] == pytest.approx(0.5, abs=0.2)
        assert ahead[-1] < 0.02

    play(scenario, Work(fixed_cost=1), ONE_BY_ONE)


def test_a_batch_that_ends_early_is_followed_at_once() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.learn()
        scene.work.compute_s = 0.1
        started = scene.time
        await asyncio.gather(*[await scene.submit(number) for number in range(4)])
        assert abs(scene.time - started - 0.4) < 1e-6

    play(scenario, TimedWork(fixed_cost=1), ONE_BY_ONE)


def test_each_bulk_batch_follows_four_interactive_ones() -> None:
    async def scenario(scene: Scene) -> None:
        jobs = Arrivals(scene)
        await jobs.submit(0, Priority.INTERACTIVE)
        await settle()
        bulk = [await jobs.submit(0, Priority.BULK) for _ in range(2)]
        for number in range(11):
            await jobs.submit(number % 2, Priority.INTERACTIVE)
            await asyncio.sleep(BATCH_SECONDS)
        await asyncio.gather(*jobs.tasks)
        order = [number for [number] in scene.log]
        first, second = (order.index(number) for number in bulk)
        assert (first, second - first) == (5, 5)

    play(scenario, limits=ONE_BY_ONE)


def test_closing_a_batcher_leaves_the_batch_of_another() -> None:
    async def scenario(scene: Scene) -> None:
        running = await scene.submit(1)
        await settle()
        await scene.batchers[1].close()
        assert not scene.scheduler.idle
        assert (await running).result == -1

    play(scenario)


def test_a_closed_scheduler_computes_nothing() -> None:
    async def scenario(scene: Scene) -> None:
        scene.scheduler.close()
        with pytest.raises(DeadlineError):
            await (await scene.submit(1, 5.0))
        assert scene.log == []

    play(scenario)


async def test_threads_end_once_the_scheduler_is_closed() -> None:
    """On a real loop: in virtual time there are no threads."""

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if "-ending" in thread.name]

    scheduler = Scheduler("ending")
    assert await scheduler.instances[0].compute(Recorder(), [1], None) == [-1]
    assert len(threads()) == 1
    scheduler.close()
    await until(lambda: not threads())


def test_queues_of_a_device_take_turns() -> None:
    async def scenario(scene: Scene) -> None:
        tasks = [await scene.submit(0)]
        await settle()
        tasks += [await scene.submit(number) for number in range(1, 6)]
        tasks += [await scene.submit(number, batcher=1) for number in (11, 12)]
        await asyncio.gather(*tasks)
        assert scene.log == [[0], [11], [1], [12], [2], [3], [4], [5]]

    play(scenario, limits=ONE_BY_ONE)


def test_an_idle_scheduler_says_so() -> None:
    async def scenario(scene: Scene) -> None:
        assert scene.scheduler.idle
        task = await scene.submit(1)
        assert not scene.scheduler.idle, "one waits"
        await settle()
        assert not scene.scheduler.idle, "one runs"
        await task
        await settle()
        assert scene.scheduler.idle

    play(scenario)


def test_the_delay_counts_what_runs_and_waits() -> None:
    """Batches take 1 s."""

    async def scenario(scene: Scene) -> None:
        await scene.learn()
        scheduler, [queue, bulk] = scene.scheduler, scene.batcher.queues
        assert scheduler.delay(queue) == 0
        tasks = [await scene.submit(0)]
        await asyncio.sleep(0.25)
        assert abs(scheduler.delay(queue) - 0.75) < 1e-6
        tasks += [await scene.submit(0) for _ in range(3)]
        tasks += [await scene.submit(0, priority=Priority.BULK) for _ in range(2)]
        assert abs(scheduler.delay(queue) - 3.75) < 1e-6
        assert abs(scheduler.delay(bulk) - 2.75) < 1e-6
        await asyncio.gather(*tasks)

    play(scenario, TimedWork(fixed_cost=1), limits=ONE_BY_ONE)
