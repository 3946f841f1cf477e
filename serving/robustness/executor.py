"""A thread for what is measured beside the requests, so that no answer waits behind that for a thread of the codec."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from speakerlens.serving.metrics import Robustness

T = TypeVar("T")
P = ParamSpec("P")

# Each may hold a window of audio. Measuring takes a fraction of the computing, so that more than a few wait only where
# the machine has far too much to do.
MOST_WAITING = 100


class BoundedExecutor:
    """Does one thing after the other; what comes while enough waits is dropped and counted.

    Args:
        metrics: where that is counted.
    """

    def __init__(self, metrics: Robustness) -> None:
        self._metrics = metrics
        self._room = threading.Semaphore(MOST_WAITING)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="measuring")

    def submit(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> "Future[T] | None":
        """Does something some time soon; None where it is dropped."""
        if not self._room.acquire(blocking=False):
            self.count("dropped")
            return None
        try:
            future = self.thread.submit(function, *arguments, **named)
        except RuntimeError:  # closed, while a call that is being cut short goes on
            return None
        future.add_done_callback(lambda _: self._room.release())
        return future

    def count(self, outcome: str) -> None:
        """Counts what became of a measurement."""
        self._metrics.background.labels("measure", outcome).inc()

    def close(self) -> None:
        """Ends the thread; what waits is given up."""
        self.thread.shutdown(wait=False, cancel_futures=True)
