"""A process for each way of computing something, so that libraries and their threads do not meet."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.peers.measuring import Sample
from benchmarks.processes import processor_seconds

Make = Callable[..., Callable[[], Any]]
"""Returns a function to measure; a module's function, as it is found by its name in another process."""

# Processor time that a way may take to be made and called once, in which compilers work; on a busy machine it is long.
OPEN_SECONDS = 60


class SkippedError(Exception):
    """A way cannot be measured here; the message says why."""


class Worker:
    """A process that calls a function when asked to, and says what it took.

    Args:
        threads: for the libraries that read it from the environment.
        make: see `Make`.
        arguments: of `make`.

    Raises:
        SkippedError: a library is missing, or the function cannot be made or called.
    """

    def __init__(self, threads: int, make: Make, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._process = context.Process(target=_work, args=(theirs, make, arguments), daemon=False)
        self._process.start()
        theirs.close()
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
        try:
            self.result = self._opened()
        except SkippedError:
            self.close()
            raise

    def run(self, calls: int = 1) -> Sample:
        """Call the function some times; return the means of a call."""
        self._pipe.send(calls)
        wall, cpu = self._receive()
        return Sample(wall / calls, cpu / calls)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process.pid is not None
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def _opened(self) -> Any:
        while not self._pipe.poll(1.0):
            if processor_seconds(self.pid) > OPEN_SECONDS:
                raise SkippedError(f"not ready after {OPEN_SECONDS} s of processor time")
        return self._receive()

    def _receive(self) -> Any:
        try:
            fault, value = self._pipe.recv()
        except EOFError:
            raise SkippedError("its process ended") from None
        if fault:
            raise SkippedError(fault)
        return value


def _work(pipe: Connection, make: Make, arguments: tuple[Any, ...]) -> None:
    """Send the function's first result, then the seconds of as many calls as are asked for; errors as text."""
    try:
        function = make(*arguments)
        pipe.send((None, function()))
        while True:
            calls = pipe.recv()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                function()
            pipe.send((None, (time.perf_counter() - wall, time.process_time() - cpu)))
    except EOFError:
        return
    except SkippedError as error:
        pipe.send((str(error), None))
    except ImportError as error:
        pipe.send((f"not installed ({error})", None))
    except Exception as error:  # noqa: BLE001 - a peer may fail in any way
        traceback.print_exc()
        pipe.send((f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300], None))
