"""What C libraries write to stderr, as records of the log.

Decoders, gRPC's core and ONNX Runtime write there past Python's logging, whenever and in whatever form they like. Where
every line of the log is to be JSON, file descriptor 2 leads into a pipe whose lines are logged, and the log has the
stderr that was.
"""

import atexit
import faulthandler
import logging
import os
import sys
import threading
from typing import TextIO

log = logging.getLogger("stderr")

STDERR = 2
LONGEST_LINE = 4096
READ_SIZE = 65_536
LAST_WORDS_SECONDS = 1.0


def capture() -> TextIO:
    """From now until the process exits, lines written to file descriptor 2 are warnings of the logger `stderr`.

    `sys.stderr` stays what it was: a log that fails complains there, and must not hear its own complaint. What is
    written in the moment before a crash may be lost; the traces of all threads at the crash are not.

    Returns:
        The stderr that was, for the log itself.
    """
    real = os.fdopen(os.dup(STDERR), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    reading, writing = os.pipe()
    # Whoever writes may hold the interpreter's lock, without which nobody reads: better lose lines than wait for ever.
    os.set_blocking(writing, False)
    os.dup2(writing, STDERR)
    os.close(writing)
    reader = threading.Thread(target=_read, args=(reading,), name="stderr", daemon=True)
    reader.start()
    atexit.register(_restore, real, reader)
    sys.stderr = real
    faulthandler.enable(real)
    return real


def _read(pipe: int) -> None:
    rest = b""
    while chunk := os.read(pipe, READ_SIZE):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            _tell(line)
    _tell(rest)


def _tell(line: bytes) -> None:
    text = line[:LONGEST_LINE].decode("utf-8", "backslashreplace").strip()
    if text:
        log.warning("%s", text)


def _restore(real: TextIO, reader: threading.Thread) -> None:
    """Closes the pipe, and waits until all that was written to it is logged."""
    os.dup2(real.fileno(), STDERR)
    reader.join(LAST_WORDS_SECONDS)
