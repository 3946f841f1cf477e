"""The batcher without network or model: whatever arrives, leaves, fails or expires, answers reach their own callers."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.queue import Priority, QueueLimits
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.errors import DeadlineError, ResourceExhaustedError
from tests.serving.fakes import Recorder, until, working


def run(
    scenario: Callable[["Batcher[int, int]", Recorder], Coroutine[Any, Any, Any]],
    recorder: Recorder,
    bounds: QueueLimits = QueueLimits(max_waiting=100, max_batch=4, max_batch_cost=10**9),  # noqa: B008
) -> None:
    async def main() -> None:
        device = Scheduler("test")
        batcher = Batcher[int, int]("test", recorder, device, bounds, recorder, working())
        try:
            await asyncio.wait_for(scenario(batcher, recorder), 20)
        finally:
            recorder.gate.set()
            await batcher.close()
            device.close()

    asyncio.run(main())


class Doubler(Recorder):
    """The other queue's work: the answer to n is 2n."""

    def compute(self, feed: list[int]) -> Sequence[int]:
        return [-2 * number for number in super().compute(feed)]


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
def test_everyone_gets_their_own_answer(
    callers: list[tuple[int, str, int, Priority]], poison: frozenset[int], largest: int, budget: int, padding: float
) -> None:
    """Two queues of one device; numbers come and go, are poison, or have deadlines that passed or may pass."""
    works = Recorder(poison), Doubler(poison)
    bounds = QueueLimits(max_waiting=100, max_batch=largest, max_batch_cost=budget, max_padding=padding)
    answered: list[int] = []

    async def call(queue: "Batcher[int, int]", number: int, caller: tuple[int, str, int, Priority]) -> Any:
        pause, kind, _, priority = caller
        for _ in range(pause):
            await asyncio.sleep(0.0003)
        left = {"expires": -1.0, "hurries": 0.002}.get(kind)
        deadline = None if left is None else time.monotonic() + left
        task = asyncio.create_task(queue.submit(number, deadline, priority))
        task.add_done_callback(lambda _: answered.append(number))
        if kind == "cancels":
            await asyncio.sleep(0)
            task.cancel()
        return await asyncio.gather(task, return_exceptions=True)

    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        other = Batcher[int, int]("other", works[1], batcher._scheduler, bounds, works[1], working())
        queues = batcher, other
        outcomes = await asyncio.gather(*(call(queues[each[2]], n, each) for n, each in enumerate(callers)))
        for number, ((_, kind, queue, _), [outcome]) in enumerate(zip(callers, outcomes, strict=True)):
            if kind == "cancels":
                assert isinstance(outcome, asyncio.CancelledError)
            elif kind == "expires":
                assert isinstance(outcome, DeadlineError)
            elif kind == "hurries" and isinstance(outcome, DeadlineError):
                continue
            elif number in poison:
                assert isinstance(outcome, ArithmeticError)
            else:
                assert outcome.result == (2 * number if queue else -number)
                assert outcome.queue_s >= 0
                assert outcome.inference_s >= 0
        assert sorted(answered) == list(range(len(callers)))
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

    run(scenario, works[0], bounds)


def test_what_waits_while_the_device_is_busy_is_computed_together() -> None:
    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        recorder.gate.clear()
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.02)
        others = [asyncio.create_task(batcher.submit(number)) for number in range(2, 8)]
        await asyncio.sleep(0.02)
        recorder.gate.set()
        await asyncio.gather(first, *others)
        assert recorder.batches == [[1], [2, 3, 4, 5], [6, 7]]
        assert recorder.ran_sizes == [1, 4, 2]

    run(scenario, Recorder())


def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        recorder.gate.clear()
        running = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.02)
        queued = [asyncio.create_task(batcher.submit(number)) for number in (1, 2)]
        await asyncio.sleep(0.02)
        with pytest.raises(ResourceExhaustedError, match="2 requests wait"):
            await batcher.submit(3)
        queued[0].cancel()
        await asyncio.sleep(0.02)
        assert recorder.depth == 1, "who has gone must not hold a place"
        late = asyncio.create_task(batcher.submit(4))
        await asyncio.sleep(0.02)
        recorder.gate.set()
        assert (await late).result == -4
        assert (await running).result == 0
        assert recorder.batches == [[0], [2, 4]]
        assert recorder.deepest == 2

    run(scenario, Recorder(), QueueLimits(max_waiting=2, max_batch=4, max_batch_cost=10**9))


def test_bulk_work_leaves_room_for_who_waits_and_finds_some_beside_them() -> None:
    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        recorder.gate.clear()
        running = asyncio.create_task(batcher.submit(0))
        await until(lambda: recorder.deepest == 1 and not recorder.depth)
        bulk = [asyncio.create_task(batcher.submit(number, None, Priority.BULK)) for number in (1, 2)]
        await until(lambda: recorder.depth == 2)
        with pytest.raises(ResourceExhaustedError, match="2 requests wait"):
            await batcher.submit(3, None, Priority.BULK)
        urgent = [asyncio.create_task(batcher.submit(number)) for number in (4, 5)]
        await until(lambda: recorder.depth == 4)
        with pytest.raises(ResourceExhaustedError, match="2 requests wait"):
            await batcher.submit(6)
        bulk.pop().cancel()
        await until(lambda: recorder.depth == 3)
        bulk.append(asyncio.create_task(batcher.submit(7, None, Priority.BULK)))
        await until(lambda: recorder.depth == 4)
        recorder.gate.set()
        await asyncio.gather(running, *bulk, *urgent)
        assert recorder.batches == [[0], [4, 5], [1, 7]]

    run(scenario, Recorder(), QueueLimits(max_waiting=2, max_batch=4, max_batch_cost=10**9))


def test_a_deadline_in_the_queue_is_told_in_time_and_not_computed() -> None:
    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        recorder.gate.clear()
        running = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.02)
        started = time.monotonic()
        with pytest.raises(DeadlineError):
            await batcher.submit(1, started + 0.05)
        assert 0.04 < time.monotonic() - started < 0.5
        recorder.gate.set()
        await running
        assert (await batcher.submit(2)).result == -2
        assert recorder.batches == [[0], [2]]

    run(scenario, Recorder())


def test_a_deadline_that_the_computing_would_miss_is_refused_uncomputed() -> None:
    """A job costs one more than its number, and takes 1 ms for each; so do all of its batch, which is padded to it."""

    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        class Paced(Recorder):
            def compute(self, feed: list[int]) -> Sequence[int]:
                time.sleep(0.001 * len(feed) * (max(feed) + 1))
                return super().compute(feed)

        work = Paced()
        computed = work.batches
        paced = Batcher[int, int]("paced", work, Scheduler("paced"), QueueLimits(9, 4, 10**9), recorder, working())
        with pytest.raises(DeadlineError):  # how long it takes is not known yet
            await paced.submit(199, time.monotonic() + 0.05)
        assert (await paced.submit(99)).result == -99
        started = time.monotonic()
        with pytest.raises(DeadlineError, match="cannot be met"):
            await paced.submit(400, started + 0.2)
        assert time.monotonic() - started < 0.1
        assert (await paced.submit(49, time.monotonic() + 5)).result == -49
        assert computed == [[199], [99], [49]]
        # Together, the first would be late: they are computed one after the other.
        first = asyncio.create_task(paced.submit(99, time.monotonic() + 0.25))
        second = asyncio.create_task(paced.submit(299))
        assert [(await task).result for task in (first, second)] == [-99, -299]
        assert computed[3:] == [[99], [299]]
        await paced.close()

    run(scenario, Recorder())


def test_one_slow_batch_does_not_shut_the_queue() -> None:
    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        recorder.gate.clear()
        slow = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.4)
        recorder.gate.set()
        await slow
        for _ in range(60):
            try:
                assert (await batcher.submit(0, time.monotonic() + 0.1)).result == 0
            except DeadlineError:
                continue
            break
        else:
            pytest.fail("it is never tried again")

    run(scenario, Recorder())


def test_a_deadline_that_passed_while_a_batch_failed_is_not_tried_alone() -> None:
    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        class Expiring(Recorder):
            def compute(self, feed: list[int]) -> Sequence[int]:
                if feed == [1, 2]:
                    entries[1].deadline = time.monotonic()  # passes before the event loop has told the caller
                return super().compute(feed)

        work = Expiring(frozenset({1}))
        work.gate.clear()
        expiring = Batcher[int, int]("expiring", work, batcher._scheduler, QueueLimits(9, 9, 10**9), work, working())
        first = asyncio.create_task(expiring.submit(0))
        await asyncio.sleep(0.02)
        tasks = [asyncio.create_task(expiring.submit(1)), asyncio.create_task(expiring.submit(2))]
        await asyncio.sleep(0.02)
        entries = list(expiring._queues[0]._jobs.values())
        work.gate.set()
        await first
        one, two = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(one, ArithmeticError)
        assert isinstance(two, DeadlineError)
        assert work.batches == [[0], [1, 2], [1]]
        await expiring.close()

    run(scenario, Recorder())


def test_one_bad_job_does_not_poison_its_batch() -> None:
    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        recorder.gate.clear()
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.02)
        tasks = [asyncio.create_task(batcher.submit(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0.02)
        recorder.gate.set()
        await first
        one, two, three = await asyncio.gather(*tasks, return_exceptions=True)
        assert (one.result, three.result) == (-1, -3)  # type: ignore[union-attr]
        assert isinstance(two, ArithmeticError)

    run(scenario, Recorder(frozenset({2})))


def test_queues_of_a_device_take_turns() -> None:
    """A queue that is never empty does not starve another."""

    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        device = batcher._scheduler
        bounds = QueueLimits(max_waiting=100, max_batch=1, max_batch_cost=10**9)
        other = Batcher[int, int]("other", recorder, device, bounds, recorder, working())
        recorder.gate.clear()
        flood = [asyncio.create_task(batcher.submit(number)) for number in range(40)]
        await asyncio.sleep(0.02)
        single = asyncio.create_task(other.submit(1000))
        await asyncio.sleep(0.02)
        recorder.gate.set()
        await asyncio.gather(single, *flood)
        assert [1000] in recorder.batches[:3]
        await other.close()

    run(scenario, Recorder())


def test_a_function_that_loses_an_answer_is_an_error_for_everyone() -> None:
    async def scenario(batcher: "Batcher[int, int]", recorder: Recorder) -> None:
        class Lossy(Recorder):
            def compute(self, feed: list[int]) -> Sequence[int]:
                return []

        lossy = Batcher[int, int]("lossy", Lossy(), Scheduler("lossy"), QueueLimits(9, 9, 9), recorder, working())
        with pytest.raises(RuntimeError, match="0 results for 1 jobs"):
            await lossy.submit(1)
        await lossy.close()

    run(scenario, Recorder())
