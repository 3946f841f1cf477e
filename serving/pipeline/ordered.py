"""Work on the items of a source, several at a time, and its results in their order."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


async def map_ordered(
    items: AsyncIterator[T], function: Callable[[T], Awaitable[U]], at_once: int
) -> AsyncGenerator[U, None]:
    """Results of `function` in the order of `items`, of which at most `at_once` are in work or wait to be taken.

    The next item is asked for as soon as there is room, and never before: whoever does not take results stops the
    source. When the generator is closed, or anything fails, what is in work is cancelled.
    """
    room, ready = asyncio.Semaphore(at_once), asyncio.Event()
    tasks: deque[asyncio.Task[U]] = deque()

    async def start(item: T) -> U:
        return await function(item)

    async def fill() -> None:
        try:
            await room.acquire()
            async for item in items:
                tasks.append(asyncio.create_task(start(item)))
                ready.set()
                await room.acquire()
        finally:
            ready.set()

    filling = asyncio.create_task(fill())
    try:
        while True:
            await ready.wait()
            if not tasks:
                if filling.done():
                    await filling
                    return
                ready.clear()
                continue
            result = await tasks[0]
            tasks.popleft()
            yield result
            room.release()
    finally:
        for task in (filling, *tasks):
            task.cancel()
        await asyncio.gather(filling, *tasks, return_exceptions=True)
