"""Receives requests and hands answers over, within limits of time and memory.

gRPC itself waits for as long as the other side likes: for a request that arrives byte by byte, and for a client that
does not read. Either would hold what the call holds, and a stopping server up.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from serving.errors import DeadlineError, Reason, ResourceExhaustedError
from serving.transport.holding import Holdings, Share
from serving.transport.wire import LARGE_BYTES

# Nobody knows how much of a request has arrived before all has. One that takes longer than this counts as the largest.
SLOW_SECONDS = 2.0
# A status waits behind an answer that is not read; it is there for a client who begins to read again.
ABORT_SECONDS = 1.0


class Transfers:
    """Of all calls.

    Args:
        seconds: how long a request may take to arrive, and an answer to be taken.
        message_bytes: the largest request.
        held_bytes: what all calls may hold together; requests that arrive slowly get half of it.
    """

    def __init__(self, seconds: float, message_bytes: int, held_bytes: int) -> None:
        self._seconds = seconds
        self._message_bytes = message_bytes
        self.held = Holdings(held_bytes)
        self._arriving = Holdings(max(message_bytes, held_bytes // 2))

    async def first(self, messages: AsyncIterator[bytes]) -> bytes | None:
        """The first message of a call, or None where the client ends the call without one.

        Raises:
            DeadlineError: it does not arrive in time.
            ResourceExhaustedError: it arrives slowly, and many others do.
        """
        refusal: list[ResourceExhaustedError] = []
        with self._arriving.share() as share:

            def slow() -> None:
                try:
                    share.take(self._message_bytes)
                except ResourceExhaustedError as error:
                    refusal.append(error)
                    limit.reschedule(0.0)

            timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, slow)
            try:
                async with asyncio.timeout(self._seconds) as limit:
                    return await anext(messages, None)
            except TimeoutError:
                raise next(iter(refusal), self._late()) from None
            finally:
                timer.cancel()

    async def deliver(self, context: Any, payload: bytes, share: Share, first: bool = True) -> None:
        """Hands an answer over, the call's first or a later one; returns when the connection has taken all of it.

        Raises:
            DeadlineError: the client does not read. What it has not read is kept for it by gRPC, and in `share`, until
                it reads or goes.
            ResourceExhaustedError: there is no room for the answer.
        """
        if len(payload) < LARGE_BYTES:
            try:
                async with asyncio.timeout(self._seconds):
                    await context.write(payload)
            except TimeoutError:
                raise self._unread() from None
            return
        with share.part(max(0, len(payload) - share.answered)):
            writing: asyncio.Future[None] = asyncio.ensure_future(_write(context, payload, first))
            writing.add_done_callback(_heard)
            try:
                done = await _done(writing, self._seconds)
            except asyncio.CancelledError:
                writing.cancel()
                raise
            if not done:
                share.keep(writing)
                raise self._unread()
            writing.result()

    async def refuse(self, context: Any, code: str, detail: str) -> None:
        """Ends a call with an error; gRPC raises its own when the handler returns."""
        aborting = asyncio.ensure_future(context.abort(grpc.StatusCode[code], detail))
        aborting.add_done_callback(_heard)
        await _done(aborting, ABORT_SECONDS)

    def _late(self) -> DeadlineError:
        return DeadlineError(Reason.ARRIVAL, f"the request has not arrived within {self._seconds:g} s; send it faster")

    def _unread(self) -> DeadlineError:
        return DeadlineError(
            Reason.UNREAD, f"the answer has not been read within {self._seconds:g} s; read answers as they come"
        )


async def _write(context: Any, payload: bytes, first: bool) -> None:
    if first:
        # Else gRPC would send these with the answer, and again with the status of one that is not read, and so neither.
        await context.send_initial_metadata(())
    await context.write(payload)


async def _done(future: "asyncio.Future[Any]", seconds: float) -> bool:
    done, _ = await asyncio.wait({future}, timeout=max(0.0, seconds))
    return bool(done)


def _heard(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()
