"""Many pieces of work of one call: how many at once, and what an error does to the others."""

import asyncio

import pytest

from speakerlens.serving.pipeline.concurrency import ConcurrencyLimit


def test_the_first_error_ends_the_rest() -> None:
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
            await asyncio.wait_for(ConcurrencyLimit(4, 4).map_concurrent(range(20), work), 20)

    asyncio.run(main())
    assert (begun, sorted(ended)) == ([0, 1, 2, 3], [0, 1, 3])


def test_every_result_stands_in_its_place() -> None:
    async def work(item: int) -> int:
        await asyncio.sleep(0.01 * (5 - item))
        if item == 1:
            raise ArithmeticError
        return -item

    async def main() -> None:
        assert await ConcurrencyLimit(4, 2).map_concurrent([0, 2, 3], work) == [0, -2, -3]
        first, failed, last = await ConcurrencyLimit(4, 2).run([0, 1, 3], work)
        assert (first, type(failed), last) == (0, ArithmeticError, -3)

    asyncio.run(main())
