"""The command `speakerlens listen`: a file or standard input as live audio, with a line for each window."""

import argparse
import sys
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from speakerlens.cli import document, files, forms, search
from speakerlens.cli.failures import CommandError, Exit, call_error, usage_error
from speakerlens.cli.live_input import live_input
from speakerlens.cli.options import CommandParser, connect
from speakerlens.decoding import AudioFileError, AudioReader, open_audio
from speakerlens.errors import ClientError
from speakerlens.identification import Identification
from speakerlens.requests import Chunk
from speakerlens.results import Answer, WindowResult
from speakerlens.search_requests import SearchStreamOptions
from speakerlens.search_results import SearchResult, SearchWindow
from speakerlens.stream_requests import StreamOptions

CHUNK_SECONDS = 0.1


def add_listen(parser: CommandParser) -> None:
    """Add the options of `listen`."""
    parser.add_argument(
        "file", metavar="FILE", help="any audio file that is read; -: raw samples or a WAV stream on standard input"
    )
    parser.add_variants()
    parser.add_argument("--search", action="store_true", help="name enrolled speakers instead of the model's own")
    search.add_gallery(parser)
    parser.add_json("print one JSON object per window, and one for the whole")
    forms.add_form(parser, stream=True)
    parser.set_defaults(run=listen)


def listen(arguments: argparse.Namespace) -> int:
    """Send the audio as it arrives, and print the answers.

    Raises:
        CommandError: the command cannot start, the audio cannot be read, or the call failed.
    """
    if not arguments.search and (arguments.variant or arguments.speakers):
        raise usage_error("--variant and --speakers are for --search; name models with --variants")
    if arguments.search and arguments.variants != "all":
        raise usage_error("--variants: --search uses one model; name it with --variant")
    show = files.show_json if arguments.json else files.show_tables()
    rate, channels, chunks = _source(arguments)
    form: dict[str, Any] = {
        "rate": rate,
        "channels": channels,
        "channel": arguments.channel,
        "encoding": forms.ENCODINGS[arguments.format],
    }
    with connect(arguments) as client:
        try:
            if arguments.search:
                options = SearchStreamOptions(variant=arguments.variant, speakers=arguments.speakers, **form)
                for found in client.search_stream(chunks, options):
                    _print_found(arguments, found)
                return Exit.OK
            for answer in client.identify_stream(chunks, StreamOptions(variants=arguments.variants, **form)):
                if isinstance(answer, Identification):
                    show(arguments.file, answer, {})
                elif arguments.json:
                    files.print_json(document.window_document(answer))
                else:
                    files.print_line(_window_line(answer))
        except ClientError as error:
            file = files.title(arguments.file)
            raise call_error(error, {"audio": file, "samples": file}) from error
        except ValueError as error:
            raise usage_error(str(error)) from error
        except (OSError, AudioFileError) as error:
            raise _unreadable(arguments.file, error) from error
    return Exit.OK


def _print_found(arguments: argparse.Namespace, found: SearchWindow | SearchResult) -> None:
    if isinstance(found, SearchResult):
        if arguments.json:
            search.show_json(arguments.file, found, {})
        else:
            files.tables().print_search(files.title(arguments.file), found)
    elif arguments.json:
        files.print_json(document.search_window_document(found))
    else:
        files.print_line(search.window_line(found))


def _source(arguments: argparse.Namespace) -> tuple[int, int, Iterator[Chunk]]:
    """Return the sample rate in Hz, the number of channels, and the chunks."""
    if arguments.file != files.STDIN:
        try:
            file = open_audio(Path(arguments.file))
        except (OSError, AudioFileError) as error:
            raise _unreadable(arguments.file, error) from error
        return file.rate, file.channels, _blocks(file)
    if sys.stdin is None:  # closed, as by `<&-`
        raise CommandError(Exit.INPUT, "UNREADABLE", "standard input is closed")
    source = cast(BufferedReader, sys.stdin.buffer)
    try:
        live = live_input(source, arguments.rate, arguments.channels, arguments.format)
    except (OSError, AudioFileError) as error:
        raise _unreadable(arguments.file, error) from error
    return live.rate, live.channels, live.chunks


def _unreadable(file: str, error: Exception) -> CommandError:
    reason = error.strerror if isinstance(error, OSError) else None
    return CommandError(Exit.INPUT, "UNREADABLE", f"{files.title(file)}: {reason or error}")


def _blocks(file: AudioReader) -> Iterator[Chunk]:
    with file:
        yield from file.blocks(max(1, round(CHUNK_SECONDS * file.rate)))


def _turn(answer: Answer) -> str:
    """Return the speaker of the turn that a window is part of; of a window alone from a server that names no turn."""
    if answer.turn is None:
        return f"{answer.best.speaker}{'' if answer.known else '?'} {answer.best.probability:.0%}"
    turn = answer.turn
    return f"{turn.speaker}{'' if turn.known else '?'} {turn.probability:.0%} since {turn.start_s:.2f} s"


def _window_line(window: WindowResult) -> str:
    best = (f"{answer.name}: {_turn(answer)}" for answer in window.answers)
    failed = (f"{failure.name} failed ({failure.code})" for failure in window.failures)
    text = ", ".join([*best, *failed]) if window.speech else "no speech"
    return f"{window.start_s:8.2f} to {window.end_s:8.2f} s  {text}"
