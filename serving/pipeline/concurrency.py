"""Many pieces of work of one call, a few at a time, so that a large call leaves the queues to others."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from speakerlens.serving.errors import Reason, ResourceExhaustedError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# How long work that nobody waits for waits for room before it asks again, where the server does not say.
NO_ROOM_SECONDS = 0.1
FULL = (Reason.QUEUE_FULL, Reason.IN_FLIGHT)


class ConcurrencyLimit:
    """Bounds on what is in work: of one call, and of all calls together.

    Calls take turns, so that a small one does not wait for the end of a large one.

    Args:
        of_call: at most so many at once of one call.
        of_all: and of all.
    """

    def __init__(self, of_call: int, of_all: int) -> None:
        self._of_call = of_call
        self._places = asyncio.Semaphore(of_all)

    async def run(
        self, items: Sequence[ItemT], work: Callable[[ItemT], Awaitable[ResultT]]
    ) -> list[ResultT | Exception]:
        """What `work` gives for each item, in their order; its errors take the place of results.

        Whoever is cancelled cancels what is in work, and the rest is not begun.
        """

        async def caught(item: ItemT) -> ResultT | Exception:
            try:
                return await work(item)
            except Exception as error:
                return error

        return await self.map_concurrent(items, caught)

    async def map_concurrent(
        self, items: Sequence[ItemT], work: Callable[[ItemT], Awaitable[ResultT]]
    ) -> list[ResultT]:
        """What `work` gives for each item, in their order, or the first of its errors.

        At that error, as where this is cancelled, what is in work is cancelled, and the rest is not begun.
        """
        results: dict[int, ResultT] = {}
        remaining = iter(enumerate(items))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._of_call, len(items))):
                    group.create_task(self._drain(remaining, work, results))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [results[index] for index in range(len(items))]

    async def _drain(
        self,
        remaining: Iterator[tuple[int, ItemT]],
        work: Callable[[ItemT], Awaitable[ResultT]],
        results: dict[int, ResultT],
    ) -> None:
        for index, item in remaining:
            async with self._places:
                results[index] = await work(item)


async def retry_when_full(work: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """What `work` gives; where the server has no room for it, it waits and tries again."""
    while True:
        try:
            return await work()
        except ResourceExhaustedError as error:
            if error.reason not in FULL:
                raise
            await asyncio.sleep(error.retry_after_s or NO_ROOM_SECONDS)
