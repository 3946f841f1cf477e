"""The commands `enroll`, `speakers` and `forget`."""

import argparse
from dataclasses import asdict
from typing import Any

from speakerlens import requests
from speakerlens.cli import files, forms
from speakerlens.cli.failures import Exit, call_error, usage_error
from speakerlens.cli.options import CommandParser, connect, speaker_name
from speakerlens.enrolment_results import EnrolledSpeaker
from speakerlens.errors import ClientError


def add_enroll(parser: CommandParser) -> None:
    """Add the options of `enroll`."""
    parser.add_argument("speaker", type=speaker_name, metavar="NAME", help="name of the speaker")
    parser.add_argument("files", nargs="+", metavar="AUDIO", help="utterances; - is standard input")
    parser.add_argument("--add", action="store_true", help="add the utterances to those that are stored")
    parser.add_variants()
    parser.add_json()
    forms.add_form(parser)
    parser.set_defaults(run=enroll)


def enroll(arguments: argparse.Namespace) -> int:
    """Enrol a speaker from all the files, or not at all.

    Raises:
        CommandError: the command cannot start, a file cannot be read, or the call failed.
    """
    files.check(arguments.files)
    try:
        requests.enroll(arguments.speaker, [], None, arguments.variants)
    except ValueError as error:
        raise usage_error(str(error)) from error
    contents = files.read_all(arguments.files)
    sources = [forms.in_form(arguments, content) for content in contents]
    with connect(arguments) as client:
        timeout = client.timeout * len(contents)
        try:
            enrolled = client.enroll(
                arguments.speaker, sources, variants=arguments.variants, add=arguments.add, timeout=timeout
            )
        except ClientError as error:
            titles = {f"utterances[{index}]": files.title(file) for index, file in enumerate(arguments.files)}
            raise call_error(error, titles) from error
    if arguments.json:
        files.print_json(_document(enrolled))
    else:
        models = ", ".join(f"{each.variant}@{each.version}" for each in enrolled.models)
        plural = "s" if len(contents) > 1 else ""
        added = "added to" if arguments.add else "enrolled"
        files.print_line(f"{added} {enrolled.speaker} from {len(contents)} utterance{plural} in {models}")
        for index in enrolled.without_speech:
            files.print_line(f"{files.title(arguments.files[index])}: no speech was found in it")
    return Exit.OK


def add_speakers(parser: CommandParser) -> None:
    """Add the options of `speakers`."""
    parser.add_json()
    parser.set_defaults(run=speakers)


def speakers(arguments: argparse.Namespace) -> int:
    """List the enrolled speakers.

    Raises:
        CommandError: the command cannot start.
        ClientError: the call failed.
    """
    table = None if arguments.json else files.tables()
    with connect(arguments) as client:
        enrolled = client.speakers()
    if table is None:
        files.print_json({"speakers": [_document(each) for each in enrolled]})
    else:
        table.print_speakers(enrolled)
    return Exit.OK


def add_forget(parser: CommandParser) -> None:
    """Add the options of `forget`."""
    parser.add_argument("speaker", type=speaker_name, metavar="NAME", help="name of the enrolled speaker")
    parser.add_json()
    parser.set_defaults(run=forget)


def forget(arguments: argparse.Namespace) -> int:
    """Remove an enrolled speaker.

    Raises:
        CommandError: the command cannot start.
        ClientError: the call failed.
    """
    with connect(arguments) as client:
        client.forget(arguments.speaker)
    if arguments.json:
        files.print_json({"forgotten": arguments.speaker})
    else:
        files.print_line(f"forgot {arguments.speaker}")
    return Exit.OK


def _document(enrolled: EnrolledSpeaker) -> dict[str, Any]:
    """Return what `--json` prints for a speaker: without `without_speech` where there is nothing to say."""
    return {name: value for name, value in asdict(enrolled).items() if value != ()}
