"""Reopens a broken engine until it works; its queues wait for the first attempts.

After some errors (CUDA's sticky ones, a corrupted arena) everything fails that is computed on an open session, though a
new session would work.
"""

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 30.0
# After this many failed attempts jobs are refused: the engine may never work again, as where the bundle is deleted.
ATTEMPTS_BEFORE_REFUSING = 3


class EngineRecovery:
    """Whether an engine works, and its reopening where it does not; must be used on the event loop.

    Args:
        name: for messages, such as `clean/1`.
        reopen: opens the engine again and checks it, or raises; takes seconds, runs in a thread.
        record_attempt: called with whether an attempt succeeded.

    Attributes:
        broken: whether nothing can be computed now.
        failing: whether, moreover, several attempts to reopen the engine failed.
    """

    def __init__(self, name: str, reopen: Callable[[], object], record_attempt: Callable[[bool], object]) -> None:
        self._name = name
        self._reopen = reopen
        self._record_attempt = record_attempt
        self._listeners: list[Callable[[bool], object]] = []
        self._task: asyncio.Task[None] | None = None
        self.broken = False
        self.failing = False

    def subscribe(self, listener: Callable[[bool], object]) -> None:
        """Call `listener` with whether the engine works, at every change and when it becomes failing."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Start reopening the engine, unless it is being reopened."""
        if not self.broken:
            log.error("the engine of %s is broken and will be reopened", self._name)
            self.broken = True
            self._task = asyncio.create_task(self._reopen_until_works())
            self._notify(False)

    async def close(self) -> None:
        """Stop, and drop the listeners, which refer to an engine whose memory is to be released."""
        self._listeners.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _reopen_until_works(self) -> None:
        pause, failures = FIRST_PAUSE_SECONDS, 0
        while not await self._attempt():
            failures += 1
            if failures == ATTEMPTS_BEFORE_REFUSING:
                self.failing = True
                self._notify(False)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
        self._task, self.broken, self.failing = None, False, False
        log.warning("the engine of %s works again", self._name)
        self._notify(True)

    async def _attempt(self) -> bool:
        try:
            await asyncio.to_thread(self._reopen)
        except Exception as error:  # noqa: BLE001 - any error is retried
            log.error("the engine of %s cannot be opened: %s", self._name, error)  # noqa: TRY400 - the cause says all
            self._call(self._record_attempt, False)
            return False
        self._call(self._record_attempt, True)
        return True

    def _notify(self, works: bool) -> None:
        for listener in self._listeners:
            self._call(listener, works)

    def _call(self, listener: Callable[[bool], object], works: bool) -> None:
        """Call a listener; its errors must not end the recovery."""
        try:
            listener(works)
        except Exception:
            log.exception("a listener to the engine of %s failed unexpectedly", self._name)
