"""An event loop with its own clock: waiting and computing take no real time, and happen at exact moments."""

import asyncio
import selectors
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_Pending = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class VirtualLoop(asyncio.SelectorEventLoop):
    """Event loop whose clock jumps to the next timer when nothing else is to be done.

    Functions for executors run on the loop's thread, one at a time for each executor; `spend` makes them take time.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._spent = 0.0
        self._pending: dict[Any, deque[_Pending]] = defaultdict(deque)
        self._busy: set[Any] = set()
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return virtual seconds since the loop was made."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock at once, as a pause of the whole process does: timers fire late."""
        self._now += seconds

    def spend(self, seconds: float) -> None:
        """Make the function that an executor runs now take this many seconds."""
        self._spent += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> "asyncio.Future[T]":  # type: ignore[override]
        """Run a function as described for the class."""
        future: asyncio.Future[T] = self.create_future()
        self._pending[executor].append((future, func, args))
        if executor not in self._busy:
            self._run_next(executor)
        return future

    def _run_next(self, executor: Any) -> None:
        self._busy.discard(executor)
        while self._pending[executor]:
            future, func, args = self._pending[executor].popleft()
            if future.done():  # cancelled before it began
                continue
            self._spent = 0.0
            try:
                result, error = func(*args), None
            except Exception as caught:  # noqa: BLE001 - passed on to the future
                result, error = None, caught
            self._busy.add(executor)
            self.call_later(self._spent, self._finish, executor, future, result, error)
            return

    def _finish(self, executor: Any, future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._run_next(executor)


class _JumpingSelector(selectors.SelectSelector):
    """Moves a loop's clock instead of waiting."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits, and no timer is set")
        if not ready and timeout:
            self._loop.advance(timeout)
        return ready


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns on a loop of its own with virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def current_loop() -> VirtualLoop:
    """Return the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop
