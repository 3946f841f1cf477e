"""Processes that decode audio: started once, kept for the next file, ended when a file takes too long.

A file that loops, crashes or floods a decoder costs its own request and nothing else: its worker is ended, and the next
file gets another. Workers are forked, in some 3 ms, from a template process that has the libraries in memory. They end
with this process, however it ends: the template ends when its socket closes, and the workers with the template.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.signatures import AudioFileError

SHARED_SAMPLES = 2**19
PACKET_BYTES = 128 * 1024
REASONS = ("time", "deadline", "memory", "crash")
"""Why a worker was ended: its processor or wall-clock time, the caller's deadline, the system's memory, a fault."""

_PROGRAM = Path(__file__).with_name("decoder_process.py")
_START = "import sys; path = sys.argv[1]; sys.path[:] = sys.argv[4:]; exec(compile(open(path).read(), path, 'exec'))"
_TEMPLATE_SECONDS = 60.0
_ENDING_SECONDS = 2.0
_IDLE = 4


@dataclass(frozen=True)
class StepLimits:
    """The most that one step may take: opening a file, or decoding a block of it.

    Attributes:
        cpu_seconds: of processor time; a block takes some hundredths.
        wall_seconds: until the answer, on a machine with other work.
    """

    cpu_seconds: float = 1.0
    wall_seconds: float = 20.0


class DecoderStoppedError(AudioFileError):
    """A file whose worker had to be ended; `reason` is one of `REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Worker:
    """A process that decodes one file at a time.

    Attributes:
        pid: its process id.
        av: whether it was forked with FFmpeg in memory.
        tired: whether it has worked for long enough to be replaced.
    """

    def __init__(self, pid: int, channel: socket.socket, memory: mmap, av: bool) -> None:
        self.pid = pid
        self.av = av
        self.tired = False
        self._channel = channel
        self._samples: NDArray[np.float32] = np.frombuffer(memory, np.float32)

    def ask(self, request: dict[str, Any], descriptor: int | None, seconds: float) -> dict[str, Any] | None:
        """Send a request, with a file if there is one; return the answer, or None if the process has ended.

        Raises:
            TimeoutError: there is no answer after `seconds`.
        """
        try:
            self._channel.settimeout(max(seconds, 1e-3))
            descriptors = [] if descriptor is None else [descriptor]
            socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
            packet = self._channel.recv(PACKET_BYTES)
        except TimeoutError:
            raise
        except OSError:
            return None
        if not packet:
            return None
        reply: dict[str, Any] = json.loads(packet)
        self.tired = bool(reply.get("tired"))
        return reply

    @property
    def alive(self) -> bool:
        """Whether the process has not ended; the system may have ended it for its memory."""
        return not select.select([self._channel], [], [], 0)[0]

    def samples(self, count: int) -> NDArray[np.float32]:
        """Return a copy of the first samples, float32 [count], of what was decoded last."""
        return self._samples[:count].copy()

    def close(self) -> None:
        """Close the channel, at which the process ends."""
        self._channel.close()


class DecoderPool:
    """Keeps workers for reuse; may be used by several threads.

    Attributes:
        idle: how many workers are kept that decode nothing.
    """

    def __init__(self, idle: int = _IDLE) -> None:
        self.idle = idle
        self._av = False
        self._lock = threading.Lock()
        self._template: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._free: list[Worker] = []
        self._returned: deque[Worker] = deque()
        # Held here, or the garbage collector could close a worker's channel before the file returns it.
        self._busy: set[Worker] = set()
        self._observers: list[Callable[[str], None]] = []

    def subscribe(self, observer: Callable[[str], None]) -> None:
        """Call a function with the reason, one of `REASONS`, whenever a worker is ended for a file."""
        self._observers.append(observer)

    def unsubscribe(self, observer: Callable[[str], None]) -> None:
        """Undo `subscribe`."""
        with suppress(ValueError):
            self._observers.remove(observer)

    def start(self, av: bool = False) -> None:
        """Start the template process, without waiting for it.

        Args:
            av: whether it imports FFmpeg at once, and not only when it is needed, which then takes half a second.

        Raises:
            OSError: the system refuses.
        """
        with self._lock:
            self._av = av
            self._start()

    def acquire(self, av: bool = False) -> Worker:
        """Return a worker that decodes nothing; fork one if there is none.

        Raises:
            OSError: the system refuses another process.
        """
        with self._lock:
            self._sort()
            for index in reversed(range(len(self._free))):
                if self._free[index].av >= av:
                    worker = self._free.pop(index)
                    if worker.alive:
                        break
                    self._end(worker)
            else:
                worker = self._fork(av)
            self._busy.add(worker)
            return worker

    def release(self, worker: Worker) -> None:
        """Take back a worker that has answered its last request; never waits."""
        self._returned.append(worker)
        # A file may be closed by the garbage collector, in a thread that is just here.
        if self._lock.acquire(blocking=False):
            try:
                self._sort()
            finally:
                self._lock.release()

    def _sort(self) -> None:
        """Keep what was returned, or end it."""
        while self._returned:
            worker = self._returned.popleft()
            self._busy.discard(worker)
            if len(self._free) < self.idle and not worker.tired:
                self._free.append(worker)
            else:
                self._end(worker)

    def stop(self, worker: Worker, reason: str | None = None) -> str:
        """End a worker; return the reason and count it: as given, or by the signal that has ended it."""
        with self._lock:
            self._busy.discard(worker)
            status = self._end(worker)
        if reason is None:
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            timed = (signal.SIGPROF, signal.SIGXCPU)
            reason = "time" if number in timed else "memory" if number == signal.SIGKILL else "crash"
        for observer in tuple(self._observers):
            observer(reason)
        return reason

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            for worker in (*self._free, *self._returned):
                worker.close()
            self._free.clear()
            self._returned.clear()
            if self._control is not None and self._template is not None:
                self._control.close()
                try:
                    self._template.wait(_ENDING_SECONDS)
                except subprocess.TimeoutExpired:
                    self._template.kill()
                    self._template.wait()
            self._control = self._template = None

    def forget(self) -> None:
        """Let go of the processes, which are another process's: for the child of a fork."""
        for worker in (*self._free, *self._returned):
            worker.close()
        if self._control is not None:
            self._control.close()
        if self._template is not None:
            self._template.returncode = 0

    def _start(self) -> None:
        if self._template is not None and self._template.poll() is None:
            return
        if self._control is not None:
            self._control.close()
        for worker in self._free:
            worker.close()
        self._free.clear()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_TEMPLATE_SECONDS)
        with theirs:
            quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
            self._template = subprocess.Popen(  # noqa: S603 - a program of this package
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _START,
                    str(_PROGRAM),
                    str(theirs.fileno()),
                    "av" * self._av,
                    *sys.path,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **quiet},
                process_group=0,  # Ctrl-C is for this process
            )

    def _fork(self, av: bool) -> Worker:
        self._start()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        shared = os.memfd_create("samples")
        try:
            os.truncate(shared, 4 * SHARED_SAMPLES)
            av = av or self._av  # a template that was started without it imports it now
            reply = self._ask({"av": av}, theirs.fileno(), shared)
            return Worker(reply["worker"], ours, mmap(shared, 4 * SHARED_SAMPLES), av)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(shared)

    def _end(self, worker: Worker) -> int:
        """End a worker; return its status as `os.wait` does, 0 if the template has ended before."""
        worker.close()
        try:
            return int(self._ask({"end": worker.pid})["status"])
        except OSError:
            return 0

    def _abandon(self) -> None:
        """End the template, and with it all workers; the next file starts another."""
        if self._control is not None:
            self._control.close()
        if self._template is not None:
            self._template.kill()
            self._template.wait()
        self._control = self._template = None

    def _ask(self, request: dict[str, Any], *descriptors: int) -> dict[str, Any]:
        if self._control is None:
            raise OSError("the decoder's processes have ended")
        try:
            socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
            packet = self._control.recv(PACKET_BYTES)
        except BaseException:  # the answer, if it still comes, would be taken for that to the next request
            self._abandon()
            raise
        if not packet:
            self._abandon()
            raise OSError("the decoder's process has ended")
        reply: dict[str, Any] = json.loads(packet)
        if "error" in reply:
            raise OSError(f"the decoder cannot start another process: {reply['error']}")
        return reply


_pool = DecoderPool()


def shared_pool() -> DecoderPool:
    """Return the pool of this process."""
    return _pool


def _after_fork() -> None:
    global _pool  # noqa: PLW0603 - the child of a fork must not share its parent's workers
    _pool.forget()
    _pool = DecoderPool(_pool.idle)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: shared_pool().close())
