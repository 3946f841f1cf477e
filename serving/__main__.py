"""`python -m serving`: serves model bundles until SIGTERM or Ctrl-C."""

import asyncio
import logging
import sys
from collections.abc import Sequence

from serving.config import parse
from serving.errors import StartupError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server; returns the exit status: 0 after a stop by signal, 1 if it could not start."""
    config = parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(
        stream=sys.stderr, level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        from serving.server import serve  # noqa: PLC0415  (--help must work without an ONNX Runtime)

        asyncio.run(serve(config))
    except StartupError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
