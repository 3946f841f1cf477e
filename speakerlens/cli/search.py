"""The command `speakerlens search`: which enrolled speaker is speaking in each file, or none of them."""

import argparse
from pathlib import Path

from speakerlens import captions, search_requests
from speakerlens.cli import document, files, forms
from speakerlens.cli.failures import CommandError, Exit, call_error, usage_error
from speakerlens.cli.options import FILE_HELP, CommandParser, connect, explain_of, positive, speaker_name
from speakerlens.errors import ClientError
from speakerlens.search_results import SearchAnswer, SearchResult, SearchWindow


def add_search(parser: CommandParser) -> None:
    """Add the options of `search`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=FILE_HELP)
    add_gallery(parser)
    parser.add_argument("--top-k", type=positive, metavar="K", help="candidates to print (default: the server's, 5)")
    parser.add_json("print one JSON object per file, one on a line, instead of tables")
    forms.add_form(parser)
    parser.add_explain()
    parser.set_defaults(run=search)


def add_gallery(parser: CommandParser) -> None:
    """Add `--variant` and `--speakers`."""
    parser.add_argument(
        "--variant", metavar="NAME", help="model to use: act-da, or act-da@3 (optional if the server has only one)"
    )
    parser.add_argument(
        "--speakers",
        nargs="+",
        default=[],
        type=speaker_name,
        metavar="NAME",
        help="search only these enrolled speakers (default: all)",
    )


def search(arguments: argparse.Namespace) -> int:
    """Search for the speaker of every file; an error of one file does not stop the others.

    The exit code is the same whether a speaker is found or not.

    Raises:
        CommandError: the command cannot start.
    """
    files.check(arguments.files)
    forms.in_form(arguments, b"")
    if arguments.format is not None and arguments.plot:
        raise usage_error("--plot draws the waveform of a file, and samples without a header have none")
    options = {
        "variant": arguments.variant,
        "speakers": arguments.speakers,
        "top_k": arguments.top_k,
        "explain": explain_of(arguments),
    }
    try:
        search_requests.search(b"", None, **options)
    except ValueError as error:
        raise usage_error(str(error)) from error
    writers = files.Writers(arguments, len(arguments.files))
    table = None if arguments.json else files.tables()
    exit_code = Exit.OK
    with connect(arguments) as client:
        for number, file in enumerate(arguments.files, start=1):
            try:
                content = files.read(file)
                result = client.search(forms.in_form(arguments, content), **options)
                written = writers.write(number, file, content, captions.of_search(result))
            except (CommandError, ClientError) as error:
                failure = call_error(error) if isinstance(error, ClientError) else error
                exit_code = exit_code or failure.exit_code
                files.report(file, failure, as_json=arguments.json)
                if failure.stops:
                    break
            else:
                if table is None:
                    show_json(file, result, written)
                else:
                    table.print_search(files.title(file), result)
                    for path in written.values():
                        files.print_line(f"wrote {files.title(str(path))}")
    return exit_code


def show_json(file: str, result: SearchResult, written: dict[str, Path]) -> None:
    """Print an answer as one JSON object on one line."""
    files.print_json({**document.search_document(file, result), **{kind: str(path) for kind, path in written.items()}})


def window_line(window: SearchWindow) -> str:
    """Return the answer for a window of live audio as a line."""
    text = "no speech" if window.answer is None else _named(window.answer)
    return f"{window.start_s:8.2f} to {window.end_s:8.2f} s  {text}"


def _named(answer: SearchAnswer) -> str:
    """Return the speaker, or the best candidate with a question mark and why it is not named."""
    if not answer.candidates:
        return answer.summary
    best = answer.candidates[0]
    score = f"cosine {best.cosine:.2f}" if answer.threshold is None else f"{best.probability:.0%}"
    if answer.speaker is not None:
        return f"{answer.speaker} {score}"
    return f"{answer.decision}: {best.speaker}? {score} ({', '.join(reason.code for reason in answer.reasons)})"
