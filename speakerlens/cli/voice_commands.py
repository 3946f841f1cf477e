"""The commands `embed`, `verify`, `enroll`, `speakers` and `forget`: voices, whosever they are."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from speakerlens.cli import document, explaining, inputs, outputs, shown
from speakerlens.cli.connection import connect
from speakerlens.cli.failures import CommandError, Exit, call_error, usage_error
from speakerlens.errors import ClientError
from speakerlens.voices import Comparison, Embeddings, embed_request, enroll_request, verify_request

VARIANTS_HELP = "models to ask, with commas, as for identify (default: all)"
# Of an embedding, for people to see that it is there.
NUMBERS_SHOWN = 4


def add_embed(parser: argparse.ArgumentParser) -> None:
    """Add the options of `embed`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=inputs.FILE_HELP)
    parser.add_argument("--variants", default="all", metavar="NAMES", help=VARIANTS_HELP)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per file, a line each, with all the numbers"
    )
    parser.set_defaults(run=embed)


def embed(arguments: argparse.Namespace) -> int:
    """Ask about every file in turn; one that fails does not stop the others, unless they would fail likewise.

    Raises:
        CommandError: the command cannot start.
    """
    inputs.check(arguments.files)
    try:
        embed_request(b"", None, arguments.variants)
    except ValueError as error:
        raise usage_error(str(error)) from error
    exit_code = Exit.OK
    with connect(arguments) as client:
        for file in arguments.files:
            try:
                result = client.embed(inputs.read(file), variants=arguments.variants)
            except (CommandError, ClientError) as error:
                failure = call_error(error) if isinstance(error, ClientError) else error
                exit_code = exit_code or failure.exit_code
                inputs.report(file, failure, as_json=arguments.json)
                if failure.stops:
                    break
            else:
                _show_embeddings(file, result, as_json=arguments.json)
    return exit_code


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the options of `verify`."""
    parser.add_argument("file", metavar="AUDIO", help=inputs.FILE_HELP)
    parser.add_argument("other", nargs="?", metavar="OTHER", help="the file to compare with")
    parser.add_argument("--enrolled", type=_name, metavar="NAME", help="the enrolled speaker to compare with")
    parser.add_argument(
        "--variant", metavar="NAME", help="the model to ask: act-da, or act-da@3 (may be left out where there is one)"
    )
    explaining.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=verify)


def verify(arguments: argparse.Namespace) -> int:
    """Compare; that the voices differ is an answer like any other.

    Raises:
        CommandError: the command cannot start, a file cannot be read or written.
        ClientError: the call failed.
    """
    files = [arguments.file] if arguments.other is None else [arguments.file, arguments.other]
    if (arguments.enrolled is None) == (len(files) == 1):
        raise usage_error("compare with one thing: verify AUDIO OTHER, or verify AUDIO --enrolled NAME")
    inputs.check(files)
    explain = explaining.asked(arguments)
    question = {"speaker": arguments.enrolled, "rate": None, "variant": arguments.variant, "explain": explain}
    try:
        verify_request(b"", b"" if len(files) == 2 else None, **question)
    except ValueError as error:
        raise usage_error(str(error)) from error
    writers = explaining.Writers(arguments, len(files))
    contents = inputs.read_all(files)
    with connect(arguments) as client:
        result = client.verify(contents[0], contents[1] if len(files) == 2 else None, **question)
    written: dict[str, Path] = {}
    for number, pictured in enumerate(shown.of_comparison(result)):
        paths = writers.write(number + 1, files[number], contents[number], pictured)
        written |= {f"other_{kind}" if number else kind: path for kind, path in paths.items()}
    _show_comparison(arguments, result, written)
    return Exit.OK


def add_enroll(parser: argparse.ArgumentParser) -> None:
    """Add the options of `enroll`."""
    parser.add_argument("speaker", type=_name, metavar="NAME", help="what to call the speaker")
    parser.add_argument("files", nargs="+", metavar="AUDIO", help="utterances; - is standard input")
    parser.add_argument("--variants", default="all", metavar="NAMES", help=VARIANTS_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=enroll)


def enroll(arguments: argparse.Namespace) -> int:
    """Store a speaker, of all the files or of none.

    Raises:
        CommandError: the command cannot start, or a file cannot be read.
        ClientError: the call failed.
    """
    inputs.check(arguments.files)
    try:
        enroll_request(arguments.speaker, [], None, arguments.variants)
    except ValueError as error:
        raise usage_error(str(error)) from error
    contents = inputs.read_all(arguments.files)
    with connect(arguments) as client:
        # In one call they may take as long as they might one by one.
        timeout = client.timeout * len(contents)
        enrolled = client.enroll(arguments.speaker, contents, variants=arguments.variants, timeout=timeout)
    if arguments.json:
        outputs.print_json(asdict(enrolled))
    else:
        models = ", ".join(f"{each.variant}@{each.version}" for each in enrolled.models)
        number = len(contents)
        _say(f"enrolled {enrolled.speaker} of {number} utterance{'s' if number > 1 else ''} in {models}")
    return Exit.OK


def add_speakers(parser: argparse.ArgumentParser) -> None:
    """Add the options of `speakers`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=speakers)


def speakers(arguments: argparse.Namespace) -> int:
    """List the enrolled speakers.

    Raises:
        CommandError: the command cannot start.
        ClientError: the call failed.
    """
    show = None if arguments.json else outputs.speakers_table()
    with connect(arguments) as client:
        enrolled = client.speakers()
    if show is None:
        outputs.print_json({"speakers": [asdict(each) for each in enrolled]})
    else:
        show(enrolled)
    return Exit.OK


def add_forget(parser: argparse.ArgumentParser) -> None:
    """Add the options of `forget`."""
    parser.add_argument("speaker", type=_name, metavar="NAME", help="who is to be forgotten")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
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
        outputs.print_json({"forgotten": arguments.speaker})
    else:
        _say(f"forgot {arguments.speaker}")
    return Exit.OK


def _show_embeddings(file: str, result: Embeddings, *, as_json: bool) -> None:
    if as_json:
        outputs.print_json(document.embeddings_document(file, result))
        return
    _say(f"{outputs.title(file)}  ({result.audio.seconds:.2f} s)")
    for name, values in result.by_model.items():
        first = " ".join(f"{value:.3f}" for value in values[:NUMBERS_SHOWN])
        _say(f"{name}: {len(values)} numbers of length {np.linalg.norm(values):.3f}: {first} …")
    for failure in result.failures:
        _say(f"{failure.name} failed ({failure.code}): {failure.message}")


def _show_comparison(arguments: argparse.Namespace, result: Comparison, written: dict[str, Path]) -> None:
    with_what = {"other": arguments.other} if arguments.enrolled is None else {"enrolled": arguments.enrolled}
    if arguments.json:
        outputs.print_json(
            {
                "file": arguments.file,
                **with_what,
                **document.comparison_document(result),
                **{kind: str(path) for kind, path in written.items()},
            }
        )
        return
    other = outputs.title(arguments.other) if arguments.enrolled is None else arguments.enrolled
    verdict = "the same voice" if result.same else "different voices"
    figures = f"score {result.score:.3f}, threshold {result.threshold:.3f}"
    _say(f"{outputs.title(arguments.file)} and {other}: {verdict} ({result.name}: {figures})")
    for path in written.values():
        _say(f"wrote {outputs.title(str(path))}")


def _name(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # bytes of the command line that are no text
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8, as the names of speakers are") from None
    return text


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
