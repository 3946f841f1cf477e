"""The store on threads of its own, so that the event loop does not wait for the disk."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from speakerlens.serving.errors import FailedPreconditionError, Reason
from speakerlens.serving.gallery.store import SpeakerStore, open_store

T = TypeVar("T")


class AsyncSpeakerStore:
    """A store, used from the event loop.

    Args:
        address: of the store; None for a server without one.

    Raises:
        StartupError: the store cannot be used.
    """

    def __init__(self, address: str | None) -> None:
        self._store = None if address is None else open_store(address)
        threads = 1 if self._store is None else self._store.threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="speakers")

    @property
    def kind(self) -> str:
        """Return `sqlite` or `postgres`; empty without a store."""
        return "" if self._store is None else self._store.kind

    @property
    def configured(self) -> bool:
        """Return whether the server has a store."""
        return self._store is not None

    def check(self) -> None:
        """Check that there is a store.

        Raises:
            FailedPreconditionError: the server has none.
        """
        if self._store is None:
            raise FailedPreconditionError(
                Reason.NO_STORE, "this server keeps no speakers; start it with --speakers FILE to enrol and list them"
            )

    @property
    def opened(self) -> SpeakerStore:
        """Return the store, for use in a function that `run` is given."""
        assert self._store is not None, "the store was checked"
        return self._store

    async def run(self, function: Callable[[SpeakerStore], T]) -> T:
        """Return the result of a function of the store; a change that has begun is finished if the call is cancelled.

        Raises:
            FailedPreconditionError: the server has no store.
            RequestError: from the store.
        """
        self.check()
        assert self._store is not None
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, self._store)

    def close(self) -> None:
        """Close the store once the work in progress is done, without waiting for that."""
        if self._store is not None:
            self._threads.submit(self._store.close)
        self._threads.shutdown(wait=False)
