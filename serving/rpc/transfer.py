"""Receives requests and hands answers over, within limits of time and memory.

gRPC itself waits for as long as the other side likes: for a request that arrives byte by byte, and for a client that
does not read. Either would hold what the call holds, and a stopping server up.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from speakerlens.serving.errors import DeadlineError, Reason, RequestError, ResourceExhaustedError, UnavailableError
from speakerlens.serving.rpc.budget import ByteBudget, Reservation
from speakerlens.serving.rpc.wire import LARGE_BYTES

# A line this slow, in bytes a second (1 Mbit/s), is still waited for, however large the message.
SLOWEST_LINE = 128 * 1024
# Nobody knows how much of a request has arrived before all has. From SLOW_SECONDS on it counts what a line of this many
# bytes a second (16 Mbit/s) would have brought: on a faster one, an honest request would be there.
SLOW_SECONDS, COUNT_SECONDS = 2.0, 1.0
COUNTED_LINE = 2 * 2**20
# A caller whose connection ends while it sends leaves a call without a message, a moment before the call is cancelled.
HANGUP_SECONDS = 0.1
# A status waits behind an answer that is not read; it is there for a client who begins to read again.
ABORT_SECONDS = 1.0


class MessageTransfer:
    """Of all calls.

    Args:
        seconds: how long a request may take to arrive, and an answer to be taken, beside its time on the slowest line.
        message_bytes: the largest request.
        held_bytes: what all calls may hold together; requests that arrive slowly get half of it.
    """

    def __init__(self, seconds: float, message_bytes: int, held_bytes: int) -> None:
        self._seconds = seconds
        self._message_bytes = message_bytes
        self.held = ByteBudget(held_bytes)
        self._slow = ByteBudget(max(message_bytes, held_bytes // 2))
        self._arriving: set[_Arrival] = set()

    async def receive(self, messages: AsyncIterator[bytes]) -> bytes | None:
        """The next message of a call, or None where the client sends no more.

        Raises:
            DeadlineError: it does not arrive in time.
            ResourceExhaustedError: it arrives slowly, and many others do.
            UnavailableError: it has not arrived when the server stops.
        """
        seconds = self._seconds + self._message_bytes / SLOWEST_LINE
        limit = asyncio.timeout(seconds)
        with self._slow.share() as share, _Arrival(limit, share, self._message_bytes) as arrival:
            self._arriving.add(arrival)
            try:
                async with limit:
                    message = await anext(messages, None)
            except TimeoutError:
                raise arrival.refusal or _late(seconds) from None
            finally:
                self._arriving.discard(arrival)
        if message is None:
            await asyncio.sleep(HANGUP_SECONDS)
        return message

    def end(self) -> None:
        """Sends away the requests that have not arrived yet; nothing has been done for them."""
        for arrival in self._arriving:
            arrival.refuse(
                UnavailableError(Reason.NOT_SERVING, "the server is draining; send the request to another replica")
            )

    def hand_over(self, context: Any, payload: bytes, share: Reservation, late: Callable[[], object]) -> None:
        """Holds a single answer until the client has read it or gone; gRPC sends it, with the status.

        `late` is called where that takes longer than it may.

        Raises:
            ResourceExhaustedError: there is no room for the answer.
        """
        if len(payload) < LARGE_BYTES:
            return
        share.take(max(0, len(payload) - share.answered))
        loop = asyncio.get_running_loop()
        gone = loop.create_future()
        context.add_done_callback(lambda _: gone.set_result(None))
        share.keep(gone)
        timer = loop.call_later(self._seconds + len(payload) / SLOWEST_LINE, late)
        gone.add_done_callback(lambda _: timer.cancel())

    async def deliver(self, context: Any, payload: bytes, share: Reservation, first: bool) -> None:
        """Hands an answer of a stream over, its first or a later one; returns when the connection has taken all of it.

        Raises:
            DeadlineError: the client does not read. What it has not read is kept for it by gRPC, and in `share`, until
                it reads or goes.
            ResourceExhaustedError: there is no room for the answer.
        """
        seconds = self._seconds + len(payload) / SLOWEST_LINE
        if len(payload) < LARGE_BYTES:
            try:
                async with asyncio.timeout(seconds):
                    await context.write(payload)
            except TimeoutError:
                raise _unread(seconds) from None
            return
        with share.part(len(payload)):
            writing: asyncio.Future[None] = asyncio.ensure_future(_write(context, payload, first))
            writing.add_done_callback(_heard)
            try:
                done = await _done(writing, seconds)
            except asyncio.CancelledError:
                writing.cancel()
                raise
            if not done:
                share.keep(writing)
                raise _unread(seconds)
            writing.result()

    async def refuse(self, context: Any, code: str, detail: str) -> None:
        """Ends a call with an error; gRPC raises its own when the handler returns."""
        aborting = asyncio.ensure_future(context.abort(grpc.StatusCode[code], detail))
        aborting.add_done_callback(_heard)
        await _done(aborting, ABORT_SECONDS)


class _Arrival:
    """A request on its way, which counts from when it is slow; within the block.

    Attributes:
        refusal: why its time was ended, if it was.
    """

    def __init__(self, limit: asyncio.Timeout, share: Reservation, message_bytes: int) -> None:
        self._limit = limit
        self._share = share
        self._uncounted = message_bytes
        self.refusal: RequestError | None = None

    def refuse(self, error: RequestError) -> None:
        """Ends its time now, unless it is over."""
        if not self._limit.expired():
            self.refusal = error
            self._limit.reschedule(0.0)

    def _count(self, seconds: float) -> None:
        size = min(self._uncounted, int(seconds * COUNTED_LINE))
        try:
            self._share.take(size)
        except ResourceExhaustedError as error:
            self._share.close()  # now, or all that count in this moment would be refused
            text = (
                "the request arrives slowly, and there is no room for more that do; try again later, or send it faster"
            )
            self.refuse(ResourceExhaustedError(Reason.HELD, text, error.retry_after_s))
            return
        self._uncounted -= size
        if self._uncounted:
            self._count_after(COUNT_SECONDS)

    def _count_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._count, seconds)

    def __enter__(self) -> "_Arrival":
        self._count_after(SLOW_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _late(seconds: float) -> DeadlineError:
    return DeadlineError(Reason.ARRIVAL, f"the request has not arrived within {seconds:.3g} s; send it faster")


def _unread(seconds: float) -> DeadlineError:
    return DeadlineError(
        Reason.UNREAD, f"the answer has not been read within {seconds:.3g} s; read answers as they come"
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
