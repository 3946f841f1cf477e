"""Send a server utterances of known speakers while the interference rises and falls.

  python -m deploy.traffic build/demo/corpus --minutes 5

Each call asks one random variant of the server, or all of them, to identify the speaker. Interference is mixed in as
the scenario says; the share of right answers is printed every few seconds.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.traffic.player import Load, Traffic, wait_for_server
from deploy.traffic.scenario import DEFAULT, GRAMMAR, parse
from deploy.traffic.source import find
from speakerlens import ClientError

DEFAULT_SERVER = "127.0.0.1:50051"
REPORT_SECONDS = 5.0


def positive(text: str) -> float:
    """Return a number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def count(text: str) -> int:
    """Return a whole number above 0."""
    return math.ceil(positive(str(int(text))))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        "python -m deploy.traffic",
        description="Send a server utterances of known speakers, with changing interference.",
    )
    result.add_argument(
        "source",
        metavar="FOLDER",
        type=Path,
        help="a corpus (its test split), a bundle, or a folder of bundles (the probes in one of them)",
    )
    result.add_argument("--server", metavar="HOST:PORT", default=DEFAULT_SERVER, help="(default: %(default)s)")
    result.add_argument("--scenario", metavar="TEXT", default=DEFAULT, help=f'{GRAMMAR} (default: "%(default)s")')
    result.add_argument("--minutes", type=positive, metavar="N", help="scale the scenario to this length")
    result.add_argument("--repeat", action="store_true", help="repeat the scenario until stopped")
    result.add_argument("--rate", type=positive, metavar="N", default=3.0, help="calls a second (default: %(default)s)")
    result.add_argument("--callers", type=count, metavar="N", default=4, help="calls at a time (default: %(default)s)")
    result.add_argument(
        "--explain-share",
        type=float,
        metavar="N",
        default=0.1,
        help="share of calls with a saliency map (default: %(default)s)",
    )
    result.add_argument("--together", action="store_true", help="each call asks all variants, instead of one of them")
    result.add_argument("--seed", type=int, metavar="N", default=0, help="of the random choices (default: %(default)s)")
    result.add_argument(
        "--wait",
        type=float,
        metavar="SECONDS",
        default=60.0,
        help="limit of waiting for the server (default: %(default)s)",
    )
    result.add_argument("--json", action="store_true", help="progress as JSON, one object a line")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the scenario; return 1 where calls failed, 2 where the source or the server cannot be used."""
    options = parser().parse_args(arguments)
    load = Load(options.rate, options.callers, options.explain_share, options.together, options.seed)
    failed = False
    try:
        source = find(options.source)
        scenario = parse(options.scenario, options.minutes)
        variants = wait_for_server(options.server, options.wait)
        while True:
            with Traffic(options.server, source, scenario, variants, load) as traffic:
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
