"""`python -m serving`: serve model bundles until SIGTERM or Ctrl-C."""

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speakerlens.serving.config import PROGRAM, parse
from speakerlens.serving.errors import StartupError
from speakerlens.serving.logging import configure, own_stdout
from speakerlens.serving.memory import limit_arenas

# How long threads have to end after the drain; one that waits for a disk without an answer never does.
THREADS_SECONDS = 3.0


def main(
    argv: Sequence[str] | None = None,
    program: str = PROGRAM,
    announce: Callable[[Mapping[str, Any]], str] = json.dumps,
) -> int:
    """Run the server.

    Args:
        argv: the flags; None: of the command line.
        program: how it was called, for usage lines and errors.
        announce: returns the line to print once calls are accepted, from the addresses, the models and the provider.

    Returns:
        Exit status: 0 after a stop by signal; 1 if the server could not start, or calls were aborted when it stopped.
    """
    config = parse(sys.argv[1:] if argv is None else argv, program=program)
    limit_arenas()
    configure(config.log_level, config.log_format)
    output = own_stdout()
    try:
        from speakerlens.serving.server import serve  # noqa: PLC0415  (--help must work without an ONNX Runtime)

        finished = asyncio.run(serve(config, output, announce))
    except StartupError as error:
        if config.log_format == "json":
            logging.getLogger("serving").critical("%s", error)
        else:
            sys.stderr.write(f"error: {error}\n")
        return 1
    # Threads cannot be interrupted, such as the device's, and a normal exit would wait for them.
    if not finished or _any_thread_left(THREADS_SECONDS):
        logging.shutdown()
        os._exit(not finished)
    return 0


def _any_thread_left(seconds: float) -> bool:
    """Wait for the threads that block an exit; return whether one still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    threads = [each for each in threading.enumerate() if each is not threading.current_thread() and not each.daemon]
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread.name for thread in threads if thread.is_alive()]
    if left:
        logging.getLogger("serving").warning("ending although these threads still wait: %s", ", ".join(left))
    return bool(left)


if __name__ == "__main__":
    sys.exit(main())
