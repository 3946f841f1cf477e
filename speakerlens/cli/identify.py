"""The command `speakerlens identify`: one call for one file, and few for many."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from speakerlens.cli import explaining, inputs, outputs, shown
from speakerlens.cli.connection import connect
from speakerlens.cli.failures import CommandError, Exit, call_error, usage_error
from speakerlens.client import SpeakerClient
from speakerlens.errors import ClientError
from speakerlens.request import identify_request
from speakerlens.results import Identification, Limits

# Few enough that answers begin to come soon; the server computes about as many together.
FILES_AT_ONCE = 8
# Of a message, beside the audio: far above what any question takes.
OVERHEAD_BYTES = 4096


@dataclass(frozen=True)
class _Asked:
    """A file, and what came of it."""

    file: str
    content: bytes
    result: Identification | CommandError


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=inputs.FILE_HELP)
    parser.add_argument(
        "--variants",
        default="all",
        metavar="NAMES",
        help="models to ask, with commas: act-da is the newest version of it, act-da@3 its third (default: all)",
    )
    parser.add_argument("--top-k", type=_count, metavar="K", help="speakers per variant (default: the server's, 5)")
    explaining.add_options(parser)
    parser.add_argument("--target", metavar="SPEAKER", help="explain this speaker's score, not the best speaker's")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per file, a line each, instead of tables"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask about every file; one that fails does not stop the others, unless they would fail likewise.

    Raises:
        CommandError: the command cannot start.
    """
    question = _question(arguments)
    show = outputs.json_lines if arguments.json else outputs.tables()
    writers = explaining.Writers(arguments, len(arguments.files))
    exit_code = Exit.OK
    with connect(arguments) as client:
        for number, asked in enumerate(_answers(client, arguments.files, question), start=1):
            try:
                if isinstance(asked.result, CommandError):
                    raise asked.result
                pictured = shown.of_identification(asked.result)
                written = writers.write(number, asked.file, asked.content, pictured)
            except CommandError as error:
                exit_code = exit_code or error.exit_code
                inputs.report(asked.file, error, as_json=arguments.json)
                if error.stops:
                    break
            else:
                show(asked.file, asked.result, written)
    return exit_code


def _question(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `SpeakerClient.identify`, checked before any file is read."""
    inputs.check(arguments.files)
    question = {
        "variants": arguments.variants,
        "top_k": arguments.top_k,
        "explain": explaining.asked(arguments, arguments.target),
    }
    try:
        identify_request(b"", None, with_embedding=False, **question)
    except ValueError as error:
        raise usage_error(str(error)) from error
    return question


def _answers(client: SpeakerClient, files: Sequence[str], question: dict[str, Any]) -> Iterator[_Asked]:
    """Yield what comes of every file, in their order."""
    try:
        # A single file is not worth a question about limits: the server itself says when it is too large.
        limits = client.models().limits if len(files) > 1 else Limits(0, 0, 0, 1)
    except ClientError as error:
        yield from (_Asked(file, b"", call_error(error)) for file in files)
        return
    for batch in _batches(files, limits):
        results = iter(_results(client, [each for _, each in batch if isinstance(each, bytes)], question))
        for file, content in batch:
            if isinstance(content, CommandError):
                yield _Asked(file, b"", content)
            else:
                yield _Asked(file, content, next(results))


def _batches(files: Sequence[str], limits: Limits) -> Iterator[list[tuple[str, bytes | CommandError]]]:
    """Yield files with their contents, or why they have none, as many at a time as go into one call."""
    batch: list[tuple[str, bytes | CommandError]] = []
    size, most = 0, min(FILES_AT_ONCE, limits.max_requests or FILES_AT_ONCE)
    for file in files:
        content: bytes | CommandError
        try:
            content = inputs.read(file)
        except CommandError as error:
            content = error
        added = len(content) + OVERHEAD_BYTES if isinstance(content, bytes) else 0
        if batch and (len(batch) == most or size + added > limits.max_bytes):
            yield batch
            batch, size = [], 0
        batch.append((file, content))
        size += added
    yield batch


def _results(
    client: SpeakerClient, contents: Sequence[bytes], question: dict[str, Any]
) -> Sequence[Identification | CommandError]:
    """Return what comes of each content."""
    results: Sequence[Identification | ClientError]
    try:
        if len(contents) == 1:
            results = [client.identify(contents[0], **question)]
        elif contents:
            # In one call they may take as long as they might one by one.
            results = client.identify_batch(contents, timeout=client.timeout * len(contents), **question)
        else:
            results = []
    except ClientError as error:
        results = [error] * len(contents)
    errors = [call_error(each) for each in results if isinstance(each, ClientError)]
    if len(errors) == len(contents) and len({str(error) for error in errors}) == 1 and errors[0].stops:
        return errors
    # What only some have met does not stop the others, whatever it is.
    return [call_error(each).of_one() if isinstance(each, ClientError) else each for each in results]


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)
