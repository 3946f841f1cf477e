"""The command `speakerlens`: the client on a terminal."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict

from speakerlens.cli import identify, listen, outputs, voice_commands
from speakerlens.cli.connection import VARIABLES_HELP, add_options, connect
from speakerlens.cli.failures import EXIT_CODES_HELP, CommandError, Exit, call_error, complain
from speakerlens.errors import ClientError

EPILOG = f"{VARIABLES_HELP}\n\n{EXIT_CODES_HELP}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = parser().parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except CommandError as error:
        return _failed(error, arguments)
    except ClientError as error:
        return _failed(call_error(error), arguments)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, such as `head`, has had enough; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _failed(error: CommandError, arguments: argparse.Namespace) -> int:
    complain(str(error))
    if arguments.json and error.exit_code != Exit.USAGE:
        outputs.print_json(error.document())
    return error.exit_code


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
        serving = client.is_serving()
    if arguments.json:
        outputs.print_json({"serving": serving})
    elif serving:
        sys.stdout.write("serving\n")
    if serving:
        return Exit.OK
    complain(f"the server at {arguments.server} is not ready")
    return Exit.UNAVAILABLE


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; what it parses has the command's function as `run`."""
    parser = argparse.ArgumentParser(
        prog="speakerlens",
        description="Ask a speakerlens server who is speaking, and what its models listened to.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    identify.add(
        _command(commands, "identify", "name the speaker of each file, and show what each variant listened to")
    )
    listen.add(_command(commands, "listen", "name the speakers of live audio, window by window as it comes"))
    voice_commands.add_embed(_command(commands, "embed", "print the embeddings of each file's voice"))
    voice_commands.add_verify(
        _command(commands, "verify", "tell whether two files, or a file and an enrolled speaker, have the same voice")
    )
    enroll = "store a speaker for verify, in the place of one of that name, in all models"
    voice_commands.add_enroll(_command(commands, "enroll", enroll))
    voice_commands.add_speakers(_command(commands, "speakers", "list the enrolled speakers"))
    voice_commands.add_forget(_command(commands, "forget", "remove an enrolled speaker, from all models"))
    models = _command(commands, "models", "list the loaded models, their speakers and the server's limits")
    models.add_argument("--json", action="store_true", help="print one JSON object, with every speaker's name")
    models.set_defaults(run=_models)
    health = _command(commands, "health", "tell whether the server is ready (exit code 0) or not (5)")
    health.add_argument("--json", action="store_true", help="print one JSON object")
    health.set_defaults(run=_health)
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
