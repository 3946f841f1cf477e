"""The batcher without network or model: each caller gets the result of its own job, or its own error."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.queue import Priority, QueueLimits
from speakerlens.serving.errors import DeadlineError, Reason, ResourceExhaustedError
from tests.serving.engine.scene import LIMITS, Scene, play, settle
from tests.serving.fakes import TimedWork, working


class Doubler(TimedWork):
    """The work of the other batcher: the result of n is 2n."""

    def compute(self, inputs: list[int]) -> Sequence[int]:
        return [-2 * number for number in super().compute(inputs)]


CALLER = st.tuples(
    st.integers(0, 2),
    st.sampled_from(["patient", "patient", "cancels", "expires", "hurries"]),
    st.integers(0, 1),
    st.sampled_from(Priority),
)


@settings(max_examples=60, deadline=None)
@given(
    callers=st.lists(CALLER, min_size=1, max_size=25),
    poison=st.frozensets(st.integers(0, 24), max_size=4),
    largest=st.integers(1, 6),
    budget=st.integers(1, 80),
    padding=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_every_caller_gets_the_result_of_its_job(
    callers: list[tuple[int, str, int, Priority]], poison: frozenset[int], largest: int, budget: int, padding: float
) -> None:
    """Two batchers of one device; jobs are cancelled, fail, or have deadlines that have passed or may pass."""
    works = TimedWork(poison, compute_s=0.001), Doubler(poison, compute_s=0.001)
    limits = QueueLimits(max_waiting=100, max_batch=largest, max_batch_cost=budget, max_padding=padding)
    finished: list[int] = []

    async def call(scene: Scene, batcher: "Batcher[int, int]", number: int, caller: Any) -> Any:
        pause, kind, _, priority = caller
        await asyncio.sleep(0.0003 * pause)
        left = {"expires": -1.0, "hurries": 0.002}.get(kind)
        task = asyncio.create_task(batcher.submit(number, None if left is None else scene.time + left, priority))
        task.add_done_callback(lambda _: finished.append(number))
        if kind == "cancels":
            await asyncio.sleep(0)
            task.cancel()
        return await asyncio.gather(task, return_exceptions=True)

    async def scenario(scene: Scene) -> None:
        other = Batcher[int, int]("doubler", works[1], scene.scheduler, limits, works[1], working())
        batchers = scene.batcher, other
        outcomes = await asyncio.gather(*(call(scene, batchers[each[2]], n, each) for n, each in enumerate(callers)))
        for number, ((_, kind, batcher, _), [outcome]) in enumerate(zip(callers, outcomes, strict=True)):
            if kind == "cancels":
                assert isinstance(outcome, asyncio.CancelledError)
            elif kind == "expires":
                assert isinstance(outcome, DeadlineError)
            elif kind == "hurries" and isinstance(outcome, DeadlineError | ResourceExhaustedError):
                assert not isinstance(outcome, ResourceExhaustedError) or outcome.reason is Reason.DEADLINE
            elif number in poison:
                assert isinstance(outcome, ArithmeticError)
            else:
                assert outcome.result == (2 * number if batcher else -number)
                assert outcome.queue_s >= 0
                assert outcome.inference_s == pytest.approx(0.001)
        assert sorted(finished) == list(range(len(callers)))
        for index, work in enumerate(works):
            computed = [number for batch in work.batches for number in batch]
            assert all(callers[number][2] == index and callers[number][1] != "expires" for number in computed)
            assert all(computed.count(number) == 1 or poison for number in computed)
            for batch in work.batches:
                cost = len(batch) * (max(batch) + 1)
                assert len({callers[number][3] for number in batch}) == 1
                assert len(batch) <= largest
                assert len(batch) == 1 or cost <= budget
                assert len(batch) == 1 or cost - sum(number + 1 for number in batch) <= padding * cost
            assert work.depth == 0
        await other.close()

    play(scenario, works[0], limits)


def test_jobs_that_wait_are_computed_together() -> None:
    async def scenario(scene: Scene) -> None:
        tasks = [await scene.submit(1)]
        await settle()
        tasks += [await scene.submit(number) for number in range(2, 8)]
        results = await asyncio.gather(*tasks)
        assert scene.log == [[1], [2, 3, 4, 5], [6, 7]]
        assert scene.work.batch_sizes == [1, 4, 2]
        assert [result.queue_s for result in results] == pytest.approx([0, 1, 1, 1, 1, 2, 2])
        assert [result.inference_s for result in results] == pytest.approx([1] * 7)

    play(scenario)


def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    async def scenario(scene: Scene) -> None:
        running = await scene.submit(0)
        await settle()
        queued = [await scene.submit(number) for number in (1, 2)]
        with pytest.raises(ResourceExhaustedError, match="2 requests wait for test already") as caught:
            await scene.batcher.submit(3)
        assert caught.value.reason is Reason.QUEUE_FULL
        queued[0].cancel()
        await settle()
        assert scene.work.depth == 1, "a cancelled job must not hold a place"
        late = await scene.submit(4)
        assert (await late).result == -4
        assert (await running).result == 0
        assert scene.log == [[0], [2, 4]]
        assert scene.work.deepest == 2

    play(scenario, limits=QueueLimits(max_waiting=2, max_batch=4, max_batch_cost=10**9))


def test_each_priority_has_room_of_its_own() -> None:
    async def scenario(scene: Scene) -> None:
        tasks = [await scene.submit(0)]
        await settle()
        bulk = [await scene.submit(number, priority=Priority.BULK) for number in (1, 2)]
        with pytest.raises(ResourceExhaustedError, match="2 requests wait"):
            await scene.batcher.submit(3, None, Priority.BULK)
        tasks += [await scene.submit(number) for number in (4, 5)]
        with pytest.raises(ResourceExhaustedError, match="2 requests wait"):
            await scene.batcher.submit(6)
        bulk.pop().cancel()
        await settle()
        tasks.append(await scene.submit(7, priority=Priority.BULK))
        await asyncio.gather(*tasks, *bulk)
        assert scene.log == [[0], [4, 5], [1, 7]]

    play(scenario, limits=QueueLimits(max_waiting=2, max_batch=4, max_batch_cost=10**9))


def test_one_bad_job_does_not_fail_its_batch() -> None:
    async def scenario(scene: Scene) -> None:
        first = await scene.submit(0)
        await settle()
        tasks = [await scene.submit(number) for number in (1, 2, 3)]
        await first
        one, two, three = await asyncio.gather(*tasks, return_exceptions=True)
        assert (one.result, three.result) == (-1, -3)  # type: ignore[union-attr]
        assert isinstance(two, ArithmeticError)

    play(scenario, TimedWork(frozenset({2})))


def test_jobs_of_a_failed_batch_come_before_later_ones() -> None:
    async def scenario(scene: Scene) -> None:
        tasks = [await scene.submit(0)]
        await settle()
        tasks += [await scene.submit(number) for number in (1, 2, 3, 4)]
        await asyncio.gather(*tasks, return_exceptions=True)
        assert scene.log == [[0], [1, 2], [1], [2], [3, 4]]

    play(scenario, TimedWork(frozenset({2})), QueueLimits(max_waiting=9, max_batch=2, max_batch_cost=10**9))


def test_work_that_loses_a_result_fails_the_batch() -> None:
    class Lossy(TimedWork):
        def compute(self, inputs: list[int]) -> Sequence[int]:
            return []

    async def scenario(scene: Scene) -> None:
        with pytest.raises(RuntimeError, match="0 results for 1 jobs"):
            await scene.batcher.submit(1)

    play(scenario, Lossy())


def test_padding_is_bounded_and_others_come_next() -> None:
    async def scenario(scene: Scene) -> None:
        tasks = [await scene.submit(0)]
        await settle()
        tasks += [await scene.submit(number) for number in (99, 9, 89, 8)]
        await asyncio.gather(*tasks)
        assert scene.log == [[0], [99, 89], [9, 8]]

    play(scenario, limits=QueueLimits(max_waiting=99, max_batch=8, max_batch_cost=1000, max_padding=0.25))


def test_rows_that_fill_a_batch_up_count_as_cost() -> None:
    async def scenario(scene: Scene) -> None:
        tasks = [await scene.submit(9)]
        await settle()
        tasks += [await scene.submit(9) for _ in range(5)]
        await asyncio.gather(*tasks)
        assert [len(batch) for batch in scene.log] == [1, 4, 1]

    limits = QueueLimits(max_waiting=99, max_batch=8, max_batch_cost=40, rows=lambda n: 1 << (n - 1).bit_length())
    play(scenario, limits=limits)


def test_closing_cancels_running_and_waiting_jobs() -> None:
    async def scenario(scene: Scene) -> None:
        running = await scene.submit(1)
        await settle()
        waiting = [await scene.submit(2), await scene.submit(3, priority=Priority.BULK)]
        other = await scene.submit(4, batcher=1)
        await scene.batcher.close()
        for task in (running, *waiting):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await other).result == -4
        assert scene.log == [[1], [4]]
        assert scene.work.depth == 0

    play(scenario, limits=LIMITS)
