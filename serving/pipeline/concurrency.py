"""Run the pieces of one call a few at a time, so that a large call leaves room in the queues to others."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol, TypeVar

from speakerlens.serving.errors import Reason, ResourceExhaustedError

T = TypeVar("T")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Pause before a retry where the error names none.
RETRY_SECONDS = 0.1
FULL = (Reason.QUEUE_FULL, Reason.IN_FLIGHT)


class RunInThread(Protocol):
    """Runs functions in threads of a pool."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Run a function in a thread and return its result."""
        ...


async def map_concurrent(
    items: Sequence[ItemT],
    work: Callable[[ItemT], Awaitable[ResultT]],
    at_once: int,
    slots: AbstractAsyncContextManager[object] | None = None,
) -> list[ResultT]:
    """Return the results of `work` for each item, in the order of the items.

    Args:
        items: what to work on.
        work: called once for each item.
        at_once: most items of this call in work at a time.
        slots: a semaphore shared with other calls, which then take turns with this one.

    Raises:
        Exception: the first error of `work`. What is in work is then cancelled and the rest not begun, as when this
            coroutine is cancelled.
    """
    results: dict[int, ResultT] = {}
    remaining = iter(enumerate(items))
    shared = slots or nullcontext()

    async def work_through() -> None:
        for index, item in remaining:
            async with shared:
                results[index] = await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(items))):
                group.create_task(work_through())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [results[index] for index in range(len(items))]


async def retry_when_full(work: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Return the result of `work`; retry it for as long as it is refused for one of FULL."""
    while True:
        try:
            return await work()
        except ResourceExhaustedError as error:
            if error.reason not in FULL:
                raise
            await asyncio.sleep(error.retry_after_s or RETRY_SECONDS)
