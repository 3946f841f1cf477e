"""Concurrency of one call's work: how many items at once, in which order, and what an error does to the others."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerlens.serving.errors import Reason, ResourceExhaustedError
from speakerlens.serving.pipeline.concurrency import map_concurrent, retry_when_full
from speakerlens.serving.pipeline.session import map_ordered


def test_first_error_cancels_the_rest() -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ArithmeticError(item)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(item)
        return item

    async def main() -> None:
        with pytest.raises(ArithmeticError):
            await asyncio.wait_for(map_concurrent(range(20), work, 4), 20)

    asyncio.run(main())
    assert (begun, sorted(ended)) == ([0, 1, 2, 3], [0, 1, 3])


def test_results_are_in_the_order_of_the_items() -> None:
    async def work(item: int) -> int:
        for _ in range(5 - item):
            await asyncio.sleep(0)
        return -item

    async def main() -> None:
        assert await map_concurrent([0, 2, 3], work, 4, asyncio.Semaphore(2)) == [0, -2, -3]
        assert await map_concurrent([], work, 4) == []

    asyncio.run(main())


def test_calls_share_slots_and_take_turns() -> None:
    running: list[str] = []
    most = 0
    done: list[str] = []

    async def main() -> None:
        slots = asyncio.Semaphore(2)

        async def work(item: str) -> None:
            nonlocal most
            running.append(item)
            most = max(most, len(running))
            await asyncio.sleep(0)
            running.remove(item)
            done.append(item)

        await asyncio.gather(map_concurrent(["a"] * 20, work, 2, slots), map_concurrent(["b"] * 2, work, 2, slots))

    asyncio.run(main())
    assert most == 2
    assert "b" not in done[8:], "the small call does not wait for the end of the large one"


def test_retries_only_where_the_server_is_full() -> None:
    reasons = [Reason.IN_FLIGHT, Reason.QUEUE_FULL, Reason.MEMORY]

    async def work() -> None:
        raise ResourceExhaustedError(reasons.pop(0), "full", 1e-6)

    async def main() -> None:
        with pytest.raises(ResourceExhaustedError) as caught:
            await retry_when_full(work)
        assert caught.value.reason is Reason.MEMORY
        assert not reasons, "the first two reasons were retried"

    asyncio.run(main())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 5))
def test_results_come_in_order_and_work_is_bounded(waits: list[int], at_once: int) -> None:
    working, most, asked = 0, 0, 0

    async def source() -> AsyncIterator[tuple[int, int]]:
        nonlocal asked
        for index, wait in enumerate(waits):
            asked += 1
            yield index, wait

    async def work(item: tuple[int, int]) -> int:
        nonlocal working, most
        working += 1
        most = max(most, working)
        for _ in range(item[1]):
            await asyncio.sleep(0)
        working -= 1
        return item[0]

    async def collect() -> list[int]:
        taken = []
        async for result in map_ordered(source(), work, at_once):
            taken.append(result)
            for _ in range(5):
                await asyncio.sleep(0)
            assert asked <= len(taken) + at_once, "a reader who is slow stops the source"
        return taken

    assert asyncio.run(collect()) == list(range(len(waits)))
    assert most <= at_once


@pytest.mark.parametrize("failing", ["source", "work"])
def test_results_before_an_error_arrive_rest_is_cancelled(failing: str) -> None:
    cancelled: list[int] = []

    async def source() -> AsyncIterator[int]:
        for index in range(3):
            yield index
        if failing == "source":
            raise ZeroDivisionError
        for index in range(3, 100):
            yield index

    async def work(index: int) -> int:
        try:
            await asyncio.sleep(30 if index > 3 else 0.2 if index == 3 else 0)
            if index == 3:
                raise ZeroDivisionError
        except asyncio.CancelledError:
            cancelled.append(index)
            raise
        return index

    async def collect() -> list[int]:
        taken: list[int] = []
        with pytest.raises(ZeroDivisionError):
            async for result in map_ordered(source(), work, 4):
                taken.append(result)  # noqa: PERF401 - what came before the error counts
        assert len(asyncio.all_tasks()) == 1
        return taken

    assert asyncio.run(collect()) == [0, 1, 2]
    assert failing == "source" or cancelled
