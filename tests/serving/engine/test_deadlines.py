"""Deadlines of jobs: those that cannot meet theirs are refused early and not computed."""

import asyncio

import pytest

from speakerlens.serving.engine.queue import Estimate, Priority, PriorityQueue, QueuedJob, QueueLimits
from speakerlens.serving.errors import DeadlineError, ResourceExhaustedError
from tests.serving.engine.scene import LIMITS, Scene, play, settle
from tests.serving.fakes import Recorder, TimedWork
from tests.serving.virtual_time import current_loop, run_virtual


def unit_work(**seconds: float) -> TimedWork:
    return TimedWork(fixed_cost=1, **seconds)  # type: ignore[arg-type]


def test_a_deadline_in_the_queue_ends_the_wait_uncomputed() -> None:
    async def scenario(scene: Scene) -> None:
        running = await scene.submit(0)
        await settle()
        started = scene.time
        with pytest.raises(DeadlineError, match="the deadline passed while waiting for test"):
            await scene.batcher.submit(1, started + 0.5)
        assert scene.time == pytest.approx(started + 0.5)
        await running
        assert (await scene.batcher.submit(2)).result == -2
        assert scene.log == [[0], [2]]

    play(scenario)


def test_a_deadline_that_has_passed_is_refused_at_once() -> None:
    async def scenario(scene: Scene) -> None:
        for deadline in (scene.time, scene.time - 1):
            with pytest.raises(DeadlineError, match="the deadline passed"):
                await scene.batcher.submit(1, deadline)
        assert scene.work.deepest == 0

    play(scenario)


def test_a_deadline_shorter_than_computing_is_refused() -> None:
    """Each unit of cost takes 10 ms, so that 4 s are needed."""

    async def scenario(scene: Scene) -> None:
        await scene.learn(99)
        started = scene.time
        with pytest.raises(DeadlineError, match=r"cannot be met: test takes about 4 s, and 3\.9 s are left"):
            await scene.batcher.submit(399, started + 3.9)
        assert scene.time == started
        assert (await scene.batcher.submit(399, started + 4.1)).result == -399
        assert scene.log == [[399]]

    play(scenario, TimedWork(compute_s=0.0, cost_s=0.01))


def test_jobs_that_would_delay_each_other_are_computed_apart() -> None:
    """Padded to the longer, both would take 6 s, and the first has 3."""

    async def scenario(scene: Scene) -> None:
        await scene.learn(99)
        tasks = [await scene.submit(99, 3.0), await scene.submit(299)]
        assert [result.result for result in await asyncio.gather(*tasks)] == [-99, -299]
        assert scene.log == [[99], [299]]

    play(scenario, TimedWork(compute_s=0.0, cost_s=0.01))


@pytest.mark.parametrize(("left", "computed"), [(0.49, False), (0.51, True)])
def test_a_job_is_dropped_once_computing_would_be_late(left: float, computed: bool) -> None:
    """The queue asks again when it forms a batch: 0.5 s are needed then, whatever was expected on arrival."""

    async def main() -> None:
        inference = Estimate()
        queue = PriorityQueue[int, int]("test", LIMITS, inference, Recorder())
        queued = QueuedJob[int, int](1, 1, current_loop().time() + 10)
        queue.add(queued)
        inference.record(1, 0.5)
        inference.record(1, 0.5)
        current_loop().advance(10 - left)
        assert queue.form_batch() == ([queued] if computed else [])
        assert len(queue) == computed
        if not computed:
            assert "takes about 0.5 s, and 0.49 s are left" in str(queued.future.exception())

    run_virtual(main())


def test_one_slow_batch_does_not_shut_an_idle_queue() -> None:
    async def scenario(scene: Scene) -> None:
        for _ in range(2):
            await scene.batcher.submit(0)
        scene.work.compute_s = 0.01
        refusals = 0
        while True:
            try:
                result = await scene.batcher.submit(0, scene.time + 0.1)
                break
            except DeadlineError:
                refusals += 1
        assert result.result == 0
        assert 10 < refusals < 40, "a refusal lowers the estimate by a tenth"

    play(scenario)


def test_a_deadline_that_passes_in_a_failed_batch_ends_it() -> None:
    async def scenario(scene: Scene) -> None:
        first = await scene.submit(0)
        await settle()
        one, two = await scene.submit(1), await scene.submit(2, 1.5)
        await first
        with pytest.raises(DeadlineError):
            await two
        with pytest.raises(ArithmeticError):
            await one
        assert scene.log == [[0], [1, 2], [1]]

    play(scenario, TimedWork(frozenset({1})))


def test_a_full_queue_says_when_to_try_again() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.learn()
        tasks = [await scene.submit(0)]
        await settle()
        tasks += [await scene.submit(0) for _ in range(100)]
        with pytest.raises(ResourceExhaustedError, match="100 requests wait for test already") as caught:
            await scene.batcher.submit(0)
        assert caught.value.retry_after_s == pytest.approx(101)
        for task in tasks:
            task.cancel()

    play(scenario, unit_work(), QueueLimits(max_waiting=100, max_batch=8, max_batch_cost=10**9))


def test_jobs_are_computed_in_the_order_in_which_calls_are_due() -> None:
    """Over all queues of a priority; a job of an admitted call finds room in a full queue."""

    async def scenario(scene: Scene) -> None:
        running = await scene.submit(0)
        await settle()
        dues = {1: 9.0, 2: 3.0, 3: 6.0, 4: 3.0, 5: 1.0}
        tasks = [
            asyncio.create_task(scene.batchers[number % 2].submit(number, None, Priority.INTERACTIVE, due))
            for number, due in dues.items()
        ]
        await asyncio.gather(running, *tasks)
        assert scene.log == [[0], [5], [2], [4], [3], [1]]

    play(scenario, limits=QueueLimits(max_waiting=1, max_batch=1, max_batch_cost=10**9))
