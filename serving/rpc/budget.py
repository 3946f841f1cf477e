"""What calls hold in memory: the requests that have arrived, and the answers that have not gone yet.

gRPC bounds a message and the calls of a connection, but not what all of them hold together. Here every call has a share
of one amount, and is refused where that is used up. What is counted are bytes on the wire: read and decoded, a request
takes up to four times as much.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from speakerlens.serving.errors import Reason, ResourceExhaustedError

# When to ask again where there is no room; it comes free as calls end.
NO_ROOM_SECONDS = 1.0


class ByteBudget:
    """An amount that calls share.

    Args:
        most: bytes that all of them may hold.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    @contextmanager
    def share(self) -> Iterator["Reservation"]:
        """A share that is given back when the block is left, or later, where it is to be kept."""
        share = Reservation(self)
        try:
            yield share
        finally:
            share.close()

    def take(self, size: int) -> None:
        """Counts so many bytes.

        Raises:
            ResourceExhaustedError: there is no room for them.
        """
        if self.held + size > self._most:
            raise ResourceExhaustedError(
                Reason.HELD,
                f"all calls together may hold {self._most} bytes of requests and answers, and {self.held} are held; "
                f"{size} more are too many now, try again later",
                NO_ROOM_SECONDS,
            )
        self.held += size


class Reservation:
    """What one call holds of an amount."""

    def __init__(self, holdings: ByteBudget) -> None:
        self._holdings = holdings
        self._size = 0
        self._kept: set[asyncio.Future[None]] = set()
        self.answered = 0

    def take(self, size: int) -> None:
        """Holds so many bytes more; errors as for `ByteBudget.take`."""
        self._holdings.take(size)
        self._size += size

    def reserve_answer(self, size: int) -> None:
        """Reserve bytes of an answer under construction; `answered` sums them. Errors as for `ByteBudget.take`."""
        self.take(size)
        self.answered += size

    @contextmanager
    def part(self, size: int) -> Iterator[None]:
        """Holds so many bytes more within the block; errors as for `ByteBudget.take`."""
        self.take(size)
        try:
            yield
        finally:
            if not self._kept:
                self._give_back(size)

    def keep(self, until: "asyncio.Future[None]") -> None:
        """Holds what it holds until that is done, whatever happens to the call."""
        self._kept.add(until)
        until.add_done_callback(self._done)

    def close(self) -> None:
        """Gives everything back, unless it is to be kept."""
        if not self._kept:
            self._give_back(self._size)

    def _done(self, kept: "asyncio.Future[None]") -> None:
        self._kept.discard(kept)
        self.close()

    def _give_back(self, size: int) -> None:
        size = min(size, self._size)  # a part may be left after the whole was, by a generator that nobody closed
        self._holdings.held -= size
        self._size -= size
