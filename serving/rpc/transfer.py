"""Receives requests and delivers answers, within limits of time and memory.

gRPC waits without limit for a request that arrives byte by byte, and for a client that does not read; either would keep
the call's memory and delay a stop. gRPC limits a message and the calls of a connection, but not what all of them hold
together: here every call reserves bytes of one budget, and is refused when it is used up. Bytes on the wire count; read
and decoded, a request takes up to four times as much.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from speakerlens.serving.errors import DeadlineError, Reason, RequestError, ResourceExhaustedError, UnavailableError

# Smaller answers are not counted: gRPC buffers them anyway.
LARGE_BYTES = 64 * 1024
# Suggested pause where the budget is used up; it frees as calls end.
RETRY_SECONDS = 1.0
# The slowest connection that is waited for, in bytes per second (1 Mbit/s), however large the message.
SLOWEST_SPEED = 128 * 1024
# gRPC does not tell how much of a request has arrived. From SLOW_SECONDS on it counts what a connection of this many
# bytes per second (16 Mbit/s) would have brought: on a faster one, the request would be complete.
SLOW_SECONDS, COUNT_SECONDS = 2.0, 1.0
COUNTED_SPEED = 2 * 2**20
# When a connection ends while the client sends, the call has no message, shortly before it is cancelled.
DISCONNECT_SECONDS = 0.1
# A status waits behind an answer that is not read; a client that reads again still gets it.
ABORT_SECONDS = 1.0


class ByteBudget:
    """Bytes that all calls together may hold.

    Args:
        limit: the bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    @contextmanager
    def reservation(self) -> Iterator["Reservation"]:
        """Yield a reservation that is released at the end of the block, or later, where it is to be kept."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            reservation.close()

    def take(self, size: int) -> None:
        """Count `size` bytes.

        Raises:
            ResourceExhaustedError: they exceed the budget.
        """
        if self.held + size > self._limit:
            raise ResourceExhaustedError(
                Reason.HELD,
                f"all calls together may hold {self._limit} bytes of requests and answers, and {self.held} are held; "
                f"{size} more are too many now, try again later",
                RETRY_SECONDS,
            )
        self.held += size


class Reservation:
    """The bytes of a budget that one call holds.

    Attributes:
        answered: bytes of them that were reserved for an answer under construction.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._size = 0
        self._kept: set[asyncio.Future[None]] = set()
        self.answered = 0

    def take(self, size: int) -> None:
        """Reserve `size` more bytes; errors as for `ByteBudget.take`."""
        self._budget.take(size)
        self._size += size

    def reserve_answer(self, size: int) -> None:
        """Reserve bytes of an answer under construction; `answered` sums them. Errors as for `ByteBudget.take`."""
        self.take(size)
        self.answered += size

    @contextmanager
    def part(self, size: int) -> Iterator[None]:
        """Reserve `size` more bytes within the block; errors as for `ByteBudget.take`."""
        self.take(size)
        try:
            yield
        finally:
            if not self._kept:
                self._release(size)

    def keep(self, until: "asyncio.Future[None]") -> None:
        """Keep the bytes until that future is done, even after the call."""
        self._kept.add(until)
        until.add_done_callback(self._done)

    def close(self) -> None:
        """Release the bytes, unless they are to be kept."""
        if not self._kept:
            self._release(self._size)

    def _done(self, kept: "asyncio.Future[None]") -> None:
        self._kept.discard(kept)
        self.close()

    def _release(self, size: int) -> None:
        size = min(size, self._size)  # a part may end after the whole, in a generator that was not closed
        self._budget.held -= size
        self._size -= size


class MessageTransfer:
    """Receives and delivers the messages of all calls.

    Args:
        seconds: time for a request to arrive and for an answer to be read, beside its time at `SLOWEST_SPEED`.
        message_bytes: the largest request.
        held_bytes: the budget of all calls together; requests that arrive slowly get half of it.

    Attributes:
        budget: bytes that calls hold.
    """

    def __init__(self, seconds: float, message_bytes: int, held_bytes: int) -> None:
        self._seconds = seconds
        self._message_bytes = message_bytes
        self.budget = ByteBudget(held_bytes)
        self._slow = ByteBudget(max(message_bytes, held_bytes // 2))
        self._arriving: set[_Arrival] = set()

    async def receive(self, messages: AsyncIterator[bytes]) -> bytes | None:
        """Return the next message of a call, None where the client sends no more.

        Raises:
            DeadlineError: it does not arrive in time.
            ResourceExhaustedError: it arrives slowly, as do many others.
            UnavailableError: it has not arrived when the server stops.
        """
        seconds = self._seconds + self._message_bytes / SLOWEST_SPEED
        limit = asyncio.timeout(seconds)
        with self._slow.reservation() as reservation, _Arrival(limit, reservation, self._message_bytes) as arrival:
            self._arriving.add(arrival)
            try:
                async with limit:
                    message = await anext(messages, None)
            except TimeoutError:
                raise arrival.refusal or _late(seconds) from None
            finally:
                self._arriving.discard(arrival)
        if message is None:
            await asyncio.sleep(DISCONNECT_SECONDS)
        return message

    def end(self) -> None:
        """Refuse the requests that have not arrived yet; no work was done for them."""
        for arrival in self._arriving:
            arrival.refuse(
                UnavailableError(Reason.NOT_SERVING, "the server is draining; send the request to another replica")
            )

    def hand_over(self, context: Any, payload: bytes, reservation: Reservation, late: Callable[[], object]) -> None:
        """Reserve the bytes of a single answer until the client has read it or gone; gRPC sends it with the status.

        Calls `late` where that takes too long.

        Raises:
            ResourceExhaustedError: the answer exceeds the budget.
        """
        if len(payload) < LARGE_BYTES:
            return
        reservation.take(max(0, len(payload) - reservation.answered))
        loop = asyncio.get_running_loop()
        gone = loop.create_future()
        context.add_done_callback(lambda _: gone.set_result(None))
        reservation.keep(gone)
        timer = loop.call_later(self._seconds + len(payload) / SLOWEST_SPEED, late)
        gone.add_done_callback(lambda _: timer.cancel())

    async def deliver(self, context: Any, payload: bytes, reservation: Reservation, first: bool) -> None:
        """Send the first or a later answer of a stream; return when the connection has taken all of it.

        Raises:
            DeadlineError: the client does not read. gRPC and `reservation` keep the unread bytes until it reads or
                goes.
            ResourceExhaustedError: the answer exceeds the budget.
        """
        seconds = self._seconds + len(payload) / SLOWEST_SPEED
        if len(payload) < LARGE_BYTES:
            try:
                async with asyncio.timeout(seconds):
                    await context.write(payload)
            except TimeoutError:
                raise _unread(seconds) from None
            return
        with reservation.part(len(payload)):
            writing: asyncio.Future[None] = asyncio.ensure_future(_write(context, payload, first))
            writing.add_done_callback(_consume_error)
            try:
                done = await _done(writing, seconds)
            except asyncio.CancelledError:
                writing.cancel()
                raise
            if not done:
                reservation.keep(writing)
                raise _unread(seconds)
            writing.result()

    async def refuse(self, context: Any, code: str, detail: str) -> None:
        """End a call with an error status; gRPC raises its own error when the handler returns."""
        aborting = asyncio.ensure_future(context.abort(grpc.StatusCode[code], detail))
        aborting.add_done_callback(_consume_error)
        await _done(aborting, ABORT_SECONDS)


class _Arrival:
    """A request that is arriving; within the block it is counted once it is slow.

    Attributes:
        refusal: why waiting for it was ended early, None where it was not.
    """

    def __init__(self, limit: asyncio.Timeout, reservation: Reservation, message_bytes: int) -> None:
        self._limit = limit
        self._reservation = reservation
        self._uncounted = message_bytes
        self.refusal: RequestError | None = None

    def refuse(self, error: RequestError) -> None:
        """Stop waiting for the request now, unless its time is over."""
        if not self._limit.expired():
            self.refusal = error
            self._limit.reschedule(0.0)

    def _count(self, seconds: float) -> None:
        size = min(self._uncounted, int(seconds * COUNTED_SPEED))
        try:
            self._reservation.take(size)
        except ResourceExhaustedError as error:
            self._reservation.close()  # now, or all requests counted at this moment would be refused
            text = "the request arrives slowly, and too many others do; try again later, or send it faster"
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


def _consume_error(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()
