"""`python -m serving`: serve model bundles until SIGTERM or Ctrl-C."""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from speakerlens.serving.config import PROGRAM, parse
from speakerlens.serving.errors import StartupError
from speakerlens.serving.logging import configure
from speakerlens.serving.memory import limit_arenas


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run the server; `program` is how it was called, for usage lines and errors.

    Returns:
        Exit status: 0 after a stop by signal; 1 if the server could not start, or calls were aborted when it stopped.
    """
    config = parse(sys.argv[1:] if argv is None else argv, program=program)
    limit_arenas()
    configure(config.log_level, config.log_format)
    try:
        from speakerlens.serving.server import serve  # noqa: PLC0415  (--help must work without an ONNX Runtime)

        finished = asyncio.run(serve(config))
    except StartupError as error:
        if config.log_format == "json":
            logging.getLogger("serving").critical("%s", error)
        else:
            sys.stderr.write(f"error: {error}\n")
        return 1
    if not finished:
        logging.shutdown()
        # The device's thread cannot be interrupted, and a normal exit would wait for it.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
