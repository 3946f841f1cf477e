"""The commands `models` and `health`."""

import argparse
from dataclasses import asdict

from speakerlens.cli import files
from speakerlens.cli.failures import Exit, complain
from speakerlens.cli.options import CommandParser, connect


def add_models(parser: CommandParser) -> None:
    """Add the options of `models`."""
    parser.add_json("print one JSON object, with the names of all speakers")
    parser.set_defaults(run=models)


def models(arguments: argparse.Namespace) -> int:
    """List the loaded models.

    Raises:
        CommandError: the command cannot start.
        ClientError: the call failed.
    """
    table = None if arguments.json else files.tables()
    with connect(arguments) as client:
        catalogue = client.models()
    if table is None:
        files.print_json(asdict(catalogue))
    else:
        table.print_catalogue(arguments.server, catalogue)
    return Exit.OK


def add_health(parser: CommandParser) -> None:
    """Add the options of `health`."""
    parser.add_json()
    parser.set_defaults(run=health)


def health(arguments: argparse.Namespace) -> int:
    """Print whether the server is ready; return 5 if it is not.

    Raises:
        CommandError: the command cannot start.
        ClientError: the call failed.
    """
    with connect(arguments) as client:
        serving = client.is_serving()
    if arguments.json:
        files.print_json({"serving": serving})
    elif serving:
        files.print_line("serving")
    if serving:
        return Exit.OK
    complain(f"the server at {arguments.server} is not ready")
    return Exit.UNAVAILABLE
