"""The command `speakerlens bundles fetch`: bundles from a store to the folder that a server reads."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from speakerlens.arguments import ArgumentParser
from speakerlens.fetching import FetchError, Source, fetch

EXAMPLES = """examples:
  speakerlens bundles fetch https://models.example.org/act-da/3#sha256=5f9c… --out bundles
  speakerlens bundles fetch s3://models/act-da/3#sha256=5f9c… s3://models/clean/3#sha256=77aa… --out bundles

sha256sum bundle.json, in the bundle's folder, prints the digest; it covers all files. S3 takes AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL_S3 from the environment."""


def main(argv: Sequence[str] | None = None, program: str = "speakerlens bundles") -> int:
    """Run the command.

    Returns:
        0: every bundle is there; 1: one cannot be fetched, or is not the one that is wanted.
    """
    arguments = _parser(program).parse_args(argv)
    try:
        sources = [Source.parse(text) for text in arguments.source]
    except FetchError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for source in sources:
        try:
            folder, fetched = fetch(source, arguments.out)
        except (FetchError, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
        sys.stdout.write(f"{folder} {'fetched' if fetched else 'is there'}\n")
    return 0


def _parser(program: str) -> ArgumentParser:
    parser = ArgumentParser(prog=program, description="Bundles of models on this machine.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    about = "fetch bundles over HTTPS or from S3, and check their digests"
    fetching = commands.add_parser("fetch", help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=EXAMPLES)
    fetching.formatter_class = argparse.RawDescriptionHelpFormatter
    fetching.add_argument(
        "source", nargs="+", metavar="SOURCE", help="address of a bundle's folder, with #sha256=DIGEST"
    )
    fetching.add_argument(
        "--out", type=Path, default=Path("bundles"), metavar="DIR", help="folder of bundles (default: %(default)s)"
    )
    return parser
