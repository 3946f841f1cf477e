"""Traffic whose noise rises and falls: utterances of known speakers, sent to a server with the project's own client.

  python -m deploy.traffic build/demo/corpus --minutes 5

Each call asks one of the server's variants, drawn by chance, or all of them, who is speaking. Interference is mixed in
as the programme says; how many answers were right is printed along the way.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.traffic.calling import Load, Traffic, wait_for_server
from deploy.traffic.programme import DEFAULT, GRAMMAR, parse
from deploy.traffic.sounds import find
from speakerlens import ClientError

DEFAULT_SERVER = "127.0.0.1:50051"
REPORT_SECONDS = 5.0


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def count(text: str) -> int:
    """A whole number above 0."""
    return math.ceil(positive(str(int(text))))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "python -m deploy.traffic",
        description="Send a server utterances of known speakers, with interference that comes and goes.",
    )
    result.add_argument(
        "sounds",
        metavar="FOLDER",
        type=Path,
        help="a corpus (its test split), a bundle, or a folder of bundles (the probes in one of them)",
    )
    result.add_argument("--server", metavar="HOST:PORT", default=DEFAULT_SERVER, help="(default: %(default)s)")
    result.add_argument("--programme", metavar="TEXT", default=DEFAULT, help=f'{GRAMMAR} (default: "%(default)s")')
    result.add_argument("--minutes", type=positive, metavar="N", help="stretch or shrink the programme to this length")
    result.add_argument("--repeat", action="store_true", help="begin again at its end, until stopped")
    result.add_argument("--rate", type=positive, metavar="N", default=3.0, help="calls a second (default: %(default)s)")
    result.add_argument("--callers", type=count, metavar="N", default=4, help="calls at a time (default: %(default)s)")
    result.add_argument(
        "--explain-share", type=float, metavar="N", default=0.1, help="share that asks for a map (default: %(default)s)"
    )
    result.add_argument("--together", action="store_true", help="each call asks all variants, instead of one of them")
    result.add_argument("--seed", type=int, metavar="N", default=0, help="of all that is left to chance")
    result.add_argument(
        "--wait", type=float, metavar="SECONDS", default=60.0, help="for the server to be ready (default: %(default)s)"
    )
    result.add_argument("--json", action="store_true", help="progress as JSON, one object a line")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays the programme; the exit status is 1 where calls failed, 2 where there is nothing to play or no server."""
    options = parser().parse_args(arguments)
    load = Load(options.rate, options.callers, options.explain_share, options.together, options.seed)
    failed = False
    try:
        sounds = find(options.sounds)
        programme = parse(options.programme, options.minutes)
        variants = wait_for_server(options.server, options.wait)
        while True:
            with Traffic(options.server, sounds, programme, variants, load) as traffic:
                while traffic.playing():
                    traffic.wait(REPORT_SECONDS)
                    counts = traffic.take()
                    failed |= bool(counts.failures)
                    print(json.dumps(vars(counts)) if options.json else counts, flush=True)
            if not options.repeat:
                return 1 if failed else 0
    except (ValueError, OSError, ClientError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
