"""The command `speakerlens`: the client on a terminal."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from serving.client import identify, listen, outputs
from serving.client.connection import VARIABLES_HELP, add_options, connect
from serving.client.errors import ClientError
from serving.client.failures import EXIT_CODES_HELP, CommandError, Exit, call_error, complain
from serving.client.request import STAGES

EPILOG = f"{VARIABLES_HELP}\n\n{EXIT_CODES_HELP}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except CommandError as error:
        complain(str(error))
        return error.exit_code
    except ClientError as error:
        complain(str(error))
        return call_error(error).exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, such as `head`, has had enough; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _models(arguments: argparse.Namespace) -> int:
    show = None if arguments.json else outputs.catalogue_table()
    with connect(arguments) as client:
        catalogue = client.models()
    if show is None:
        outputs.print_json(asdict(catalogue))
    else:
        show(arguments.server, catalogue)
    return Exit.OK


def _health(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        if client.is_serving():
            sys.stdout.write("serving\n")
            return Exit.OK
    complain(f"the server at {arguments.server} is not ready")
    return Exit.UNAVAILABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speakerlens",
        description="Ask a speakerlens server who is speaking, and what its models listened to.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_identify(commands)
    listen.add(_command(commands, "listen", "name the speakers of live audio, window by window as it comes"))
    models = _command(commands, "models", "list the loaded models, their speakers and the server's limits")
    models.add_argument("--json", action="store_true", help="print one JSON object, with every speaker's name")
    models.set_defaults(run=_models)
    health = _command(commands, "health", "tell whether the server is ready (exit code 0) or not (5)")
    health.set_defaults(run=_health)
    return parser


def _add_identify(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(commands, "identify", "name the speaker of each file, and show what each variant listened to")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="audio in any format that libsndfile reads; - is standard input"
    )
    parser.add_argument(
        "--variants",
        default="all",
        metavar="NAMES",
        help="models to ask, with commas: act-da is the newest version of it, act-da@3 its third (default: all)",
    )
    parser.add_argument("--top-k", type=_count, metavar="K", help="speakers per variant (default: the server's, 5)")
    parser.add_argument("--explain", action="store_true", help="ask for saliency maps; the options below imply it")
    parser.add_argument(
        "--stages", metavar="STAGES", help=f"maps to ask for, with commas, of {', '.join(STAGES)} (default: fused)"
    )
    parser.add_argument("--target", metavar="SPEAKER", help="explain this speaker's score, not the best speaker's")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="OUT.png",
        help="draw waveform, log-mel and every map (.png, .svg or .pdf); "
        "of several files the first becomes OUT-1.png, the second OUT-2.png",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="OUT.npz",
        help="write maps, log-mel and axes as numpy arrays, named VARIANT@VERSION/STAGE; numbered as plots are",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per file, a line each, instead of tables"
    )
    parser.set_defaults(run=identify.run)


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str
) -> argparse.ArgumentParser:
    """Add a command with the options that all of them have."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
