"""The command `speakerlens identify`: one call for one file, batch calls for several."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from speakerlens import captions, requests
from speakerlens.cli import files, forms
from speakerlens.cli.failures import CommandError, Exit, call_error, usage_error
from speakerlens.cli.options import FILE_HELP, CommandParser, connect, explain_of, positive
from speakerlens.client import SpeakerClient
from speakerlens.errors import ClientError
from speakerlens.identification import Identification
from speakerlens.model_results import Limits
from speakerlens.requests import AudioSource

# Few, so that the first answers come soon; the server computes about as many together.
FILES_PER_CALL = 8
# Of a timeline of one segment, the table says all.
LEAST_SEGMENTS = 2
# Of a message besides the audio: more than any request needs.
OVERHEAD_BYTES = 4096


@dataclass(frozen=True)
class _Outcome:
    """A file and its result."""

    file: str
    content: bytes
    result: Identification | CommandError


def add_identify(parser: CommandParser) -> None:
    """Add the options of `identify`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=FILE_HELP)
    parser.add_variants()
    parser.add_argument("--top-k", type=positive, metavar="K", help="speakers per variant (default: the server's, 5)")
    parser.add_json("print one JSON object per file, one on a line, instead of tables")
    forms.add_form(parser, each=True)
    parser.add_explain(target=True)
    parser.set_defaults(run=identify)


def identify(arguments: argparse.Namespace) -> int:
    """Identify the speaker of every file; an error of one file does not stop the others.

    Raises:
        CommandError: the command cannot start.
    """
    options = _options(arguments)
    each = arguments.channel == forms.EACH
    show = files.show_json if arguments.json else files.show_tables(LEAST_SEGMENTS)
    writers = files.Writers(arguments, len(arguments.files) * (2 if each else 1))
    exit_code = Exit.OK
    with connect(arguments) as client:
        outcomes = _outcomes_of_channels(client, arguments, options) if each else _outcomes(client, arguments, options)
        for number, outcome in enumerate(outcomes, start=1):
            try:
                if isinstance(outcome.result, CommandError):
                    raise outcome.result
                maps = captions.of_answers(outcome.result.answers)
                written = writers.write(number, outcome.file, outcome.content, maps)
            except CommandError as error:
                exit_code = exit_code or error.exit_code
                files.report(outcome.file, error, as_json=arguments.json)
                if error.stops:
                    break
            else:
                show(outcome.file, outcome.result, written)
    return exit_code


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `SpeakerClient.identify`, checked before any file is read."""
    files.check(arguments.files)
    forms.in_form(arguments, b"")
    if arguments.format is not None and arguments.plot:
        raise usage_error("--plot draws the waveform of a file, and samples without a header have none")
    variants, top_k, explain = arguments.variants, arguments.top_k, explain_of(arguments, arguments.target)
    try:
        requests.identify(b"", None, variants, top_k, explain, with_embedding=False)
    except ValueError as error:
        raise usage_error(str(error)) from error
    return {"variants": variants, "top_k": top_k, "explain": explain}


def _outcomes_of_channels(
    client: SpeakerClient, arguments: argparse.Namespace, options: dict[str, Any]
) -> Iterator[_Outcome]:
    """Yield the outcome of every channel of every file, in order; the first answer says how many there are."""
    for path in arguments.files:
        try:
            content = files.read(path)
        except CommandError as error:
            yield _Outcome(path, b"", error)
            continue
        [first] = _results(client, [forms.in_form(arguments, content, 1)], options)
        yield _Outcome(path, content, first)
        count = first.audio.channels if isinstance(first, Identification) else 0
        others = [forms.in_form(arguments, content, number) for number in range(2, count + 1)]
        for other in others:
            yield _Outcome(path, content, *_results(client, [other], options))


def _outcomes(client: SpeakerClient, arguments: argparse.Namespace, options: dict[str, Any]) -> Iterator[_Outcome]:
    """Yield the outcome of every file, in order."""
    paths = arguments.files
    try:
        # A single file needs no limits: the server refuses one that is too large.
        limits = client.models().limits if len(paths) > 1 else Limits(0, 0, 0, 1)
    except ClientError as error:
        yield from (_Outcome(path, b"", call_error(error)) for path in paths)
        return
    for batch in _batches(paths, limits):
        sources = [forms.in_form(arguments, each) for _, each in batch if isinstance(each, bytes)]
        results = iter(_results(client, sources, options))
        for path, content in batch:
            if isinstance(content, CommandError):
                yield _Outcome(path, b"", content)
            else:
                yield _Outcome(path, content, next(results))


def _batches(paths: Sequence[str], limits: Limits) -> Iterator[list[tuple[str, bytes | CommandError]]]:
    """Yield files with their contents, or the error of reading them, as many at a time as fit in one call."""
    batch: list[tuple[str, bytes | CommandError]] = []
    size, most = 0, min(FILES_PER_CALL, limits.max_requests or FILES_PER_CALL)
    for path in paths:
        content: bytes | CommandError
        try:
            content = files.read(path)
        except CommandError as error:
            content = error
        added = len(content) + OVERHEAD_BYTES if isinstance(content, bytes) else 0
        if batch and (len(batch) == most or size + added > limits.max_bytes):
            yield batch
            batch, size = [], 0
        batch.append((path, content))
        size += added
    yield batch


def _results(
    client: SpeakerClient, contents: Sequence[AudioSource], options: dict[str, Any]
) -> Sequence[Identification | CommandError]:
    """Return the result for each content."""
    results: Sequence[Identification | ClientError]
    try:
        if len(contents) == 1:
            results = [client.identify(contents[0], **options)]
        elif contents:
            results = client.identify_batch(contents, timeout=client.timeout * len(contents), **options)
        else:
            results = []
    except ClientError as error:
        results = [error] * len(contents)
    errors = [call_error(each) for each in results if isinstance(each, ClientError)]
    if len(errors) == len(contents) and len({str(error) for error in errors}) == 1 and errors[0].stops:
        return errors
    # An error that only some files have does not stop the others.
    return [call_error(each).of_one_file() if isinstance(each, ClientError) else each for each in results]
