"""The command `speakerlens listen`: a file or standard input as live audio, and a line for each window as it comes."""

import argparse
import sys
from collections.abc import Iterator
from io import BufferedReader
from typing import cast

import numpy as np
import soundfile as sf

from speakerlens.cli import document, outputs
from speakerlens.cli.connection import connect
from speakerlens.cli.failures import CommandError, Exit, call_error, usage_error
from speakerlens.errors import ClientError
from speakerlens.results import Identification, WindowResult
from speakerlens.stream import Chunk, StreamOptions

CHUNK_SECONDS = 0.1
FORMATS = {"s16le": "<i2", "f32le": "<f4"}


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "file", metavar="FILE", help="audio in any format that libsndfile reads; - is raw samples on standard input"
    )
    parser.add_argument("--rate", type=int, default=16_000, metavar="HZ", help="of raw samples (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=1, metavar="N", help="of raw samples (default: %(default)s)")
    parser.add_argument(
        "--format", choices=sorted(FORMATS), default="s16le", help="of raw samples (default: %(default)s)"
    )
    parser.add_argument(
        "--variants", default="all", metavar="NAMES", help="models to ask, with commas, as for identify (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a window, and one for the whole")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Send the audio as it comes, and print what is said of it.

    Raises:
        CommandError: the command cannot start, the audio cannot be read, or the call failed.
    """
    show = outputs.json_lines if arguments.json else outputs.tables()
    rate, channels, chunks = _source(arguments)
    options = StreamOptions(rate=rate, channels=channels, variants=arguments.variants)
    with connect(arguments) as client:
        try:
            for answer in client.identify_stream(chunks, options):
                if isinstance(answer, Identification):
                    show(arguments.file, answer, {})
                else:
                    _show_window(answer, as_json=arguments.json)
        except ClientError as error:
            raise call_error(error) from error
        except ValueError as error:
            raise usage_error(str(error)) from error
        except (OSError, sf.LibsndfileError) as error:
            raise CommandError(Exit.INPUT, "UNREADABLE", f"{outputs.title(arguments.file)}: {error}") from error
    return Exit.OK


def _source(arguments: argparse.Namespace) -> tuple[int, int, Iterator[Chunk]]:
    """Return rate in Hz, channels and chunks."""
    if arguments.file != outputs.STDIN:
        try:
            file = sf.SoundFile(arguments.file)
        except (OSError, sf.LibsndfileError) as error:
            raise CommandError(Exit.INPUT, "UNREADABLE", f"{outputs.title(arguments.file)}: {error}") from error
        return file.samplerate, file.channels, _blocks(file)
    if sys.stdin is None:  # closed, as by `<&-`
        raise CommandError(Exit.INPUT, "UNREADABLE", "standard input is closed")
    return arguments.rate, arguments.channels, _raw(cast(BufferedReader, sys.stdin.buffer), arguments)


def _blocks(file: sf.SoundFile) -> Iterator[Chunk]:
    with file:
        yield from file.blocks(max(1, round(CHUNK_SECONDS * file.samplerate)), dtype="float32")


def _raw(source: BufferedReader, arguments: argparse.Namespace) -> Iterator[Chunk]:
    """Whatever is there, as soon as it is there; a sample may come in two parts."""
    kind = np.dtype(FORMATS[arguments.format])
    rest = b""
    size = max(1, round(CHUNK_SECONDS * arguments.rate)) * arguments.channels * kind.itemsize
    while data := source.read1(size):
        data = rest + data
        whole = len(data) - len(data) % kind.itemsize
        rest = data[whole:]
        if whole:
            yield np.frombuffer(data[:whole], kind)


def _show_window(window: WindowResult, *, as_json: bool) -> None:
    if as_json:
        outputs.print_json(document.window_document(window))
        return
    said = ", ".join(
        f"{answer.name}: {answer.best.speaker}{'' if answer.known else '?'} {answer.best.probability:.0%}"
        for answer in window.answers
    )
    failed = ", ".join(f"{failure.name} failed ({failure.code})" for failure in window.failures)
    text = ", ".join(part for part in (said, failed) if part) if window.speech else "nobody speaks"
    sys.stdout.write(f"{window.start_s:8.2f} to {window.end_s:8.2f} s  {text}\n")
    sys.stdout.flush()
