"""Read the audio files of a command, and write its results: tables or JSON lines, plots and arrays."""

import argparse
import errno
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile

from speakerlens.captions import CaptionedMaps
from speakerlens.cli import document
from speakerlens.cli.failures import CommandError, Exit, complain, usage_error
from speakerlens.identification import Identification

STDIN = "-"
# Of the file of --listen, in Hz, and between two sounds in it.
SAMPLE_RATE, PAUSE_SAMPLES = 16_000, 8_000
PLOT_FORMATS = (".png", ".svg", ".pdf")

Show = Callable[[str, Identification, dict[str, Path]], None]
"""Prints the answer for a file, and the files that were written for it, by kind."""

Write = Callable[[Path, str, bytes, Sequence[CaptionedMaps]], None]
"""Writes to the path the maps of a file with this name and content."""


def check(files: Sequence[str]) -> None:
    """Raise a `CommandError` if standard input would be read twice."""
    if files.count(STDIN) > 1:
        raise usage_error("- (standard input) can be read only once")


def read(file: str) -> bytes:
    """Return the content of a file; raise a `CommandError` with the reason if it cannot be read."""
    if file == STDIN and sys.stdin is None:  # closed, as by `<&-`
        raise CommandError(Exit.INPUT, "UNREADABLE", os.strerror(errno.EBADF))
    try:
        return sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except OSError as error:
        raise CommandError(Exit.INPUT, "UNREADABLE", error.strerror or str(error)) from error


def read_all(files: Sequence[str]) -> list[bytes]:
    """Return the contents of all files; raise a `CommandError` that names the first that cannot be read."""
    contents = []
    for file in files:
        try:
            contents.append(read(file))
        except CommandError as error:
            raise CommandError(error.exit_code, error.code, f"{title(file)}: {error}") from error
    return contents


def report(file: str, error: CommandError, *, as_json: bool) -> None:
    """Print how a file failed: on stderr, and as JSON on stdout."""
    # An error that stops the command, such as a server that does not answer, is not about this file.
    complain(str(error) if error.stops else f"{title(file)}: {error}")
    if as_json:
        print_json({"file": file, **error.document()})


def title(file: str) -> str:
    """Return the name of a file as text."""
    return "standard input" if file == STDIN else os.fsencode(file).decode("utf-8", "replace")


def tables() -> ModuleType:
    """Return `speakerlens.cli.table`; raise a `CommandError` that names the extra if rich is not installed."""
    return _client_extra("cli.table", "tables need rich (--json needs nothing)")


def show_tables(least_segments: int = 1) -> Show:
    """Return what prints answers as tables, and timelines of at least so many segments.

    Raises:
        CommandError: rich is not installed.
    """
    table = tables()

    def show(file: str, result: Identification, written: dict[str, Path]) -> None:
        table.print_identification(title(file), result, least_segments)
        for path in written.values():
            print_line(f"wrote {title(str(path))}")

    return show


def show_json(file: str, result: Identification, written: dict[str, Path]) -> None:
    """Print an answer as one JSON object on one line."""
    paths = {kind: str(path) for kind, path in written.items()}
    print_json({**document.identification_document(file, result), **paths})


def print_json(content: object) -> None:
    """Print a document on one line."""
    # The name of a file that is not UTF-8 holds lone surrogates, which only an escape can represent.
    print_line(json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8"))


def print_line(line: str) -> None:
    """Print a line, and flush it for readers of a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Writers:
    """Writes the files of `--plot`, `--save` and `--listen`.

    Args:
        arguments: of the command.
        count: number of utterances; the files of several are numbered.

    Raises:
        CommandError: a path is not valid, or matplotlib is not installed.
    """

    def __init__(self, arguments: argparse.Namespace, count: int) -> None:
        self._count = count
        self._writers: dict[str, tuple[Path, Write]] = {}
        if arguments.plot:
            self._writers["plot"] = (arguments.plot, _plots(arguments.plot))
        if arguments.save:
            self._writers["arrays"] = (arguments.save, _arrays(arguments.save))
        if getattr(arguments, "listen", None):
            self._writers["sound"] = (arguments.listen, _sounds(arguments.listen))

    def write(self, number: int, file: str, content: bytes, maps: Sequence[CaptionedMaps]) -> dict[str, Path]:
        """Write the files of the utterance with this number, from 1; return their paths by kind.

        Raises:
            CommandError: a file cannot be written.
        """
        written = {}
        for kind, (path, write) in self._writers.items():
            target = path if self._count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
            written[kind] = target
            try:
                write(target, file, content, maps)
            except OSError as error:
                message = f"cannot write {target}: {error.strerror or error}"
                raise CommandError(Exit.FAILURE, "UNWRITABLE", message) from error
        return written


def _plots(path: Path) -> Write:
    if path.suffix.lower() not in PLOT_FORMATS:
        raise usage_error(f"--plot {path}: the name must end in {', '.join(PLOT_FORMATS)}")
    _check_folder("--plot", path)
    plot = _client_extra("plot", "plots need matplotlib")

    def write(target: Path, file: str, content: bytes, maps: Sequence[CaptionedMaps]) -> None:
        try:
            waveform = plot.read_waveform(content)
        except plot.READ_ERRORS as error:
            raise CommandError(Exit.INPUT, "UNREADABLE", f"the waveform cannot be drawn: {error}") from error
        plot.save_plot(target, Path(title(file)).name, maps, waveform)

    return write


def _arrays(path: Path) -> Write:
    if path.suffix.lower() != ".npz":
        raise usage_error(f"--save {path}: the name must end in .npz")
    _check_folder("--save", path)
    return lambda target, _file, _content, maps: document.save_arrays(target, maps)


def _sounds(path: Path) -> Write:
    if path.suffix.lower() != ".flac":
        raise usage_error(f"--listen {path}: the name must end in .flac")
    _check_folder("--listen", path)

    def write(target: Path, _file: str, _content: bytes, maps: Sequence[CaptionedMaps]) -> None:
        pause = np.zeros(PAUSE_SAMPLES, np.float32)
        parts = [pause]
        for each in maps:
            for listening in each.explanation.listening.values():
                for sound in (listening.kept, listening.removed):
                    parts += [soundfile.read(io.BytesIO(sound), dtype="float32")[0], pause]
        soundfile.write(target, np.concatenate(parts[1:] or parts), SAMPLE_RATE, subtype="PCM_16")

    return write


def _check_folder(option: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise usage_error(f"{option} {path}: there is no folder {path.parent}")


def _client_extra(module: str, sentence: str) -> ModuleType:
    """Import a module that needs the extra `client`."""
    try:
        return importlib.import_module(f"speakerlens.{module}")
    except ModuleNotFoundError as error:
        raise usage_error(f"{sentence}: pip install 'speakerlens[client]' (no module {error.name})") from error
