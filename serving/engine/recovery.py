"""An engine that is broken is opened anew until it works; its queues wait for the first attempts.

After some errors (CUDA's sticky ones, a corrupted arena) everything fails that is computed on an open graph, though the
next graph opened would work.
"""

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
# After so many in vain nobody is kept waiting any longer: it may take for ever, as where the bundle's files are gone.
PATIENT_ATTEMPTS = 3


class EngineRecovery:
    """Whether an engine works, and its repair; must be used on the event loop.

    Args:
        name: for messages, such as `clean/1`.
        reopen: opens the engine anew and makes sure that it works, or raises; takes seconds, runs in a thread.
        counted: hears of every attempt whether it worked.
    """

    def __init__(self, name: str, reopen: Callable[[], object], counted: Callable[[bool], object]) -> None:
        self._name = name
        self._reopen = reopen
        self._counted = counted
        self._listeners: list[Callable[[bool], object]] = []
        self._task: asyncio.Task[None] | None = None
        self._failures = 0

    @property
    def broken(self) -> bool:
        """Whether nothing can be computed now."""
        return self._task is not None

    @property
    def failing(self) -> bool:
        """Whether it is broken, and several attempts to open it anew were in vain."""
        return self._failures >= PATIENT_ATTEMPTS

    def subscribe(self, listener: Callable[[bool], object]) -> None:
        """From now on tells `listener` whether the engine works: at every change, and when it becomes hopeless."""
        self._listeners.append(listener)

    def begin(self) -> None:
        """The engine is broken: repairs it, unless that is being done."""
        if self._task is None:
            log.error("the engine of %s is broken, and opened anew", self._name)
            self._task = asyncio.create_task(self._mend())
            self._tell(False)

    async def close(self) -> None:
        """Gives up, and lets the listeners go, which refer to this and to an engine whose memory is wanted back."""
        self._listeners.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _mend(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not await self._try():
            self._failures += 1
            if self._failures == PATIENT_ATTEMPTS:
                self._tell(False)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        self._task, self._failures = None, 0
        log.warning("the engine of %s works again", self._name)
        self._tell(True)

    async def _try(self) -> bool:
        try:
            await asyncio.to_thread(self._reopen)
        except Exception as error:  # whatever it is, it is tried again
            log.error("the engine of %s cannot be opened: %s", self._name, error)  # noqa: TRY400 - the cause says all
            self._say(self._counted, False)
            return False
        self._say(self._counted, True)
        return True

    def _tell(self, works: bool) -> None:
        for listener in self._listeners:
            self._say(listener, works)

    def _say(self, listener: Callable[[bool], object], works: bool) -> None:
        """What is wrong with a listener must not end the repair."""
        try:
            listener(works)
        except Exception:
            log.exception("telling of the engine of %s failed unexpectedly", self._name)
