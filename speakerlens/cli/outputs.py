"""Where the answers of `speakerlens` go: tables or JSON lines on stdout, plots and arrays into files."""

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from speakerlens.cli import document
from speakerlens.cli.failures import CommandError, Exit, usage_error
from speakerlens.cli.shown import Shown
from speakerlens.results import Catalogue, Identification
from speakerlens.voices import EnrolledSpeaker

STDIN = "-"
PLOT_FORMATS = (".png", ".svg", ".pdf")

_NO_TABLES = "tables need rich (--json needs nothing)"

Show = Callable[[str, Identification, dict[str, Path]], None]
"""Shows a file's answer and, by kind, the files that were written for it."""

Write = Callable[[Path, str, bytes, Sequence[Shown]], None]
"""Writes to the path what is shown of a file of this name and content."""


def tables() -> Show:
    """Return what prints answers as tables, or raise a `CommandError` that says what to install."""
    table = _client_extra("table", _NO_TABLES)

    def show(file: str, result: Identification, written: dict[str, Path]) -> None:
        table.print_identification(title(file), result, sys.stdout)
        for path in written.values():
            sys.stdout.write(f"wrote {title(str(path))}\n")

    return show


def catalogue_table() -> Callable[[str, Catalogue], None]:
    """Return what prints the models of a server, or raise a `CommandError` that says what to install."""
    table = _client_extra("table", _NO_TABLES)
    return lambda address, catalogue: table.print_catalogue(address, catalogue, sys.stdout)


def speakers_table() -> Callable[[Sequence[EnrolledSpeaker]], None]:
    """Return what prints enrolled speakers, or raise a `CommandError` that says what to install."""
    table = _client_extra("table", _NO_TABLES)
    return lambda speakers: table.print_speakers(speakers, sys.stdout)


def json_lines(file: str, result: Identification, written: dict[str, Path]) -> None:
    """Print one JSON object on one line."""
    print_json(
        {**document.identification_document(file, result), **{kind: str(path) for kind, path in written.items()}}
    )


def print_json(content: object) -> None:
    """Print a document on one line."""
    # The name of a file that is not UTF-8 holds lone surrogates, which only an escape can carry.
    text = json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def plots(path: Path) -> Write:
    """Return what draws plots, or raise a `CommandError` where the path or the installation does not allow it."""
    if path.suffix.lower() not in PLOT_FORMATS:
        raise usage_error(f"--plot {path}: the name must end in {', '.join(PLOT_FORMATS)}")
    _check_folder("--plot", path)
    plot = _client_extra("plot", "plots need matplotlib")

    def write(target: Path, file: str, content: bytes, shown: Sequence[Shown]) -> None:
        try:
            waveform = plot.read_waveform(content)
        except plot.SoundFileError as error:
            raise CommandError(Exit.INPUT, "UNREADABLE", f"the waveform cannot be drawn: {error}") from error
        plot.save_plot(target, Path(title(file)).name, shown, waveform)

    return write


def arrays(path: Path) -> Write:
    """Return what saves arrays, or raise a `CommandError` where the path does not allow it."""
    if path.suffix.lower() != ".npz":
        raise usage_error(f"--save {path}: the name must end in .npz")
    _check_folder("--save", path)
    return lambda target, _file, _content, shown: document.save_arrays(target, shown)


def title(file: str) -> str:
    """Return what to call a file before people."""
    return "standard input" if file == STDIN else os.fsencode(file).decode("utf-8", "replace")


def numbered(path: Path, number: int, count: int) -> Path:
    """Return the path for the file of this number, from 1: the path itself where there is one file only."""
    return path if count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def _check_folder(option: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise usage_error(f"{option} {path}: there is no folder {path.parent}")


def _client_extra(module: str, sentence: str) -> ModuleType:
    """Import a module that needs the extra `client`, which the server's own image does without."""
    try:
        return importlib.import_module(f"speakerlens.{module}")
    except ModuleNotFoundError as error:
        raise usage_error(f"{sentence}: pip install 'speakerlens[client]' (no module {error.name})") from error
