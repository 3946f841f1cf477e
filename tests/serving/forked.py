"""Server processes that are forked from one that has most modules imported: half of the cost of a start.

A fork differs from `python -m serving` by nothing but the imports that it shares. The template runs this file as a
program. It has one thread, as a fork has no other: ONNX Runtime, which starts one, is imported by each server. Each
server has a watcher, its parent, that reports its process id and exit status.
"""

import atexit
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache

PACKET_BYTES = 128 * 1024


class ForkedProcess:
    """A server with the part of `subprocess.Popen` that tests use; its output is text."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        pipes = [os.pipe() for _ in range(3)]
        readers, writers = zip(*pipes, strict=True)
        request = {"arguments": list(arguments), "environment": dict(environment), "folder": os.getcwd()}  # noqa: PTH109
        socket.send_fds(_template(), [json.dumps(request).encode()], writers)
        for writer in writers:
            os.close(writer)
        self.stdout, self.stderr, self._watcher = (os.fdopen(reader, encoding="utf-8") for reader in readers)
        self.pid = int(self._watcher.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, negative after a signal.

        Raises:
            subprocess.TimeoutExpired: the process has not ended in time.
        """
        if self.returncode is None:
            if not select.select([self._watcher], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("serving", timeout or 0.0)
            self.returncode = int(self._watcher.readline())
            self._watcher.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process at once."""
        self.send_signal(signal.SIGKILL)


@cache
def _template() -> socket.socket:
    """Start the template, which ends with this process; return the channel to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        number = theirs.fileno()
        process = subprocess.Popen([sys.executable, __file__, str(number), *sys.path], pass_fds=[number])

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours


def _serve(channel: socket.socket) -> None:
    """Fork a server for each request; return when the channel is closed."""
    main = _import_most()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # watchers are not waited for
    while True:
        packet, descriptors, _, _ = socket.recv_fds(channel, PACKET_BYTES, 3)
        if not packet:
            return
        if not os.fork():
            break
        for descriptor in descriptors:
            os.close(descriptor)
    channel.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stdout, stderr, report = descriptors
    child = os.fork()
    if child:
        os.close(stdout)
        os.close(stderr)
        os.closerange(0, 3)
        os.write(report, b"%d\n" % child)
        os.write(report, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in descriptors:
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = json.loads(packet)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["serving", *request["arguments"]]
    sys.exit(main())


def _import_most() -> Callable[[], int]:
    """Import the server's modules, but for those that import ONNX Runtime; return its `main`."""
    from speakerlens import serving  # noqa: PLC0415 - of the template only
    from speakerlens.serving.__main__ import main  # noqa: PLC0415
    from speakerlens.serving.errors import StartupError  # noqa: PLC0415

    sys.modules["onnxruntime"] = None  # type: ignore[assignment]  # importing it fails
    for module in pkgutil.walk_packages(serving.__path__, f"{serving.__name__}."):
        with suppress(ImportError, StartupError):
            importlib.import_module(module.name)
    del sys.modules["onnxruntime"]
    return main


if __name__ == "__main__":
    sys.path[:] = sys.argv[2:]
    _serve(socket.socket(fileno=int(sys.argv[1])))
