"""How long a live stream may keep the server waiting, which is measured in audio and not in messages.

A stream holds a place and its models for as long as it lasts, so it must get on. It may keep the server waiting for
`idle_s`, and every second of audio buys PER_SECOND seconds more, up to `idle_s` again: audio that comes as it is spoken
buys ten times what it takes, and may pause for all of `idle_s` at any time; a byte now and then, or messages without
any sample, buy nothing. Waiting for the client to read its answers counts like waiting for what it sends.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from speakerlens.serving.errors import DeadlineError, Reason, UnavailableError

T = TypeVar("T")

# A client that sends only while somebody speaks may be silent for nine tenths of the time.
PER_SECOND = 10.0


class IdleBudget:
    """What is left of it, for one stream.

    Args:
        idle_s: the longest wait, in seconds.
        ending: once it is done, streams are ended that their clients do not end.
    """

    def __init__(self, idle_s: float, ending: "asyncio.Future[None]") -> None:
        self._idle_s = idle_s
        self._ending = ending
        self._left = idle_s
        self._waits = 0
        self._since = 0.0

    @property
    def left(self) -> float:
        """Seconds that the client may still keep the server waiting."""
        return self._left - (time.monotonic() - self._since if self._waits else 0.0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time that the block takes; two that overlap count once where they do."""
        if not self._waits:
            self._since = time.monotonic()
        self._waits += 1
        try:
            yield
        finally:
            self._left, self._waits = self.left, self._waits - 1
            self._since = time.monotonic()

    async def messages(self, messages: AsyncIterator[T]) -> AsyncIterator[T]:
        """A client's messages, for as long as there is patience.

        Raises:
            DeadlineError: there is none left.
            UnavailableError: the server ends its streams.
        """
        while True:
            following = asyncio.ensure_future(anext(messages))
            # It may fail as the stream is cancelled, with nobody left to hear it; asyncio would log that as an error.
            following.add_done_callback(lambda task: task.cancelled() or task.exception())
            awaited: set[asyncio.Future[Any]] = {following, self._ending}
            try:
                with self.waiting():
                    await asyncio.wait(awaited, timeout=max(0.0, self.left), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not following.done():
                    following.cancel()
            if self.left <= 0:
                raise self._lost()
            if following.done() and not following.cancelled():
                try:
                    yield following.result()
                except StopAsyncIteration:
                    return
            elif self._ending.done():
                raise UnavailableError(
                    Reason.NOT_SERVING, "the server is draining; begin the stream again, or at another replica"
                )
            else:
                raise self._lost()

    async def credit(self, chunks: AsyncIterator[bytes], bytes_per_second: int) -> AsyncIterator[bytes]:
        """The same chunks of audio, which buy time as they come."""
        async for chunk in chunks:
            self._left = min(self._idle_s, self._left + PER_SECOND * len(chunk) / bytes_per_second)
            yield chunk

    def _lost(self) -> DeadlineError:
        return DeadlineError(
            Reason.IDLE,
            f"samples: less than a tenth of real time for {self._idle_s:g} s; send audio, or silence, as it is heard, "
            "and read the answers, or end the stream",
        )
