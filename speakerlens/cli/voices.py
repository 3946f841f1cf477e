"""The commands `embed` and `verify`."""

import argparse
from pathlib import Path

import numpy as np

from speakerlens import captions, requests
from speakerlens.cli import document, files, forms
from speakerlens.cli.failures import CommandError, Exit, call_error, usage_error
from speakerlens.cli.options import FILE_HELP, CommandParser, connect, explain_of, speaker_name
from speakerlens.errors import ClientError
from speakerlens.results import OPTIMISTIC, Comparison, Embeddings, ThresholdBasis

# How much of an embedding is printed without --json.
NUMBERS_SHOWN = 4


def add_embed(parser: CommandParser) -> None:
    """Add the options of `embed`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=FILE_HELP)
    parser.add_variants()
    parser.add_json("print one JSON object per file, one on a line, with all numbers")
    forms.add_form(parser)
    parser.set_defaults(run=embed)


def embed(arguments: argparse.Namespace) -> int:
    """Print the embeddings of every file; an error of one file does not stop the others.

    Raises:
        CommandError: the command cannot start.
    """
    files.check(arguments.files)
    try:
        requests.embed(b"", None, arguments.variants)
    except ValueError as error:
        raise usage_error(str(error)) from error
    exit_code = Exit.OK
    with connect(arguments) as client:
        for file in arguments.files:
            try:
                result = client.embed(forms.in_form(arguments, files.read(file)), variants=arguments.variants)
            except (CommandError, ClientError) as error:
                failure = call_error(error) if isinstance(error, ClientError) else error
                exit_code = exit_code or failure.exit_code
                files.report(file, failure, as_json=arguments.json)
                if failure.stops:
                    break
            else:
                _print_embeddings(file, result, as_json=arguments.json)
    return exit_code


def add_verify(parser: CommandParser) -> None:
    """Add the options of `verify`."""
    parser.add_argument("file", metavar="AUDIO", help=FILE_HELP)
    parser.add_argument("other", nargs="?", metavar="OTHER", help="the file to compare with")
    parser.add_argument("--enrolled", type=speaker_name, metavar="NAME", help="the enrolled speaker to compare with")
    parser.add_argument(
        "--variant", metavar="NAME", help="model to use: act-da, or act-da@3 (optional if the server has only one)"
    )
    parser.add_json()
    forms.add_form(parser)
    parser.add_explain()
    parser.set_defaults(run=verify)


def verify(arguments: argparse.Namespace) -> int:
    """Compare two speakers; the exit code is the same whether they are the same or not.

    Raises:
        CommandError: the command cannot start, or a file cannot be read or written.
        ClientError: the call failed.
    """
    paths = [arguments.file] if arguments.other is None else [arguments.file, arguments.other]
    if (arguments.enrolled is None) == (len(paths) == 1):
        raise usage_error("compare with one thing: verify AUDIO OTHER, or verify AUDIO --enrolled NAME")
    files.check(paths)
    variant, explain = arguments.variant, explain_of(arguments)
    try:
        requests.verify(b"", b"" if len(paths) == 2 else None, arguments.enrolled, None, variant, explain)
    except ValueError as error:
        raise usage_error(str(error)) from error
    writers = files.Writers(arguments, len(paths))
    contents = files.read_all(paths)
    sources = [forms.in_form(arguments, content) for content in contents]
    with connect(arguments) as client:
        other = sources[1] if len(paths) == 2 else None
        result = client.verify(sources[0], other, speaker=arguments.enrolled, variant=variant, explain=explain)
    written: dict[str, Path] = {}
    for number, maps in enumerate(captions.of_comparison(result)):
        paths_written = writers.write(number + 1, paths[number], contents[number], maps)
        written |= {f"other_{kind}" if number else kind: path for kind, path in paths_written.items()}
    _print_comparison(arguments, result, written)
    return Exit.OK


def _print_embeddings(file: str, result: Embeddings, *, as_json: bool) -> None:
    if as_json:
        files.print_json(document.embeddings_document(file, result))
        return
    files.print_line(f"{files.title(file)}  ({result.audio.seconds:.2f} s)")
    for name, values in result.by_model.items():
        first = " ".join(f"{value:.3f}" for value in values[:NUMBERS_SHOWN])
        files.print_line(f"{name}: {len(values)} numbers, norm {np.linalg.norm(values):.3f}: {first} …")
    for failure in result.failures:
        files.print_line(f"{failure.name} failed ({failure.code}): {failure.message}")


def _print_comparison(arguments: argparse.Namespace, result: Comparison, written: dict[str, Path]) -> None:
    if arguments.json:
        compared = {"other": arguments.other} if arguments.enrolled is None else {"enrolled": arguments.enrolled}
        paths = {kind: str(path) for kind, path in written.items()}
        files.print_json({"file": arguments.file, **compared, **document.comparison_document(result), **paths})
        return
    other = files.title(arguments.other) if arguments.enrolled is None else arguments.enrolled
    outcome = "same speaker" if result.same else "different speakers"
    scores = f"score {result.score:.3f}, threshold {result.threshold:.3f}"
    if result.threshold_basis is ThresholdBasis.NONE:
        outcome, scores = "not decided", f"score {result.score:.3f}; the model was exported without a threshold"
    files.print_line(f"{files.title(arguments.file)} and {other}: {outcome} ({result.name}: {scores})")
    for name, audio in ((files.title(arguments.file), result.audio), (other, result.other)):
        if audio is not None and audio.speech is False:
            files.print_line(f"{name}: no speech was found in it")
    if result.threshold_basis is ThresholdBasis.KNOWN:
        files.print_line(f"{result.name}: {OPTIMISTIC}")
    for path in written.values():
        files.print_line(f"wrote {files.title(str(path))}")
