"""Source files of a corpus: find them below a folder, and read each of them whole once, in threads."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from speakerlens.containers import FFMPEG_SUFFIXES, SUFFIXES, has_ffmpeg
from speakerlens.training.data.audio import SAMPLE_RATE, AudioFacts, measure_audio
from speakerlens.training.data.prepare.survey import is_utf8
from speakerlens.training.errors import UserError

_LEFT_BY_SYSTEMS = ("__MACOSX", "Thumbs.db", "desktop.ini")
_READERS = 16
"""Threads that read files; more than cores, as they wait for disks."""
_CHUNK = 16
"""Files per task: submitting a task costs more than reading a short file."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Source:
    """An audio file that was read whole.

    Attributes:
        path: absolute.
        facts: what reading has shown.
        channel: the one to use, from 0; None for the mean of all.
    """

    path: Path
    facts: AudioFacts
    channel: int | None = None

    @property
    def seconds(self) -> float:
        """Its measured length."""
        return self.facts.seconds

    @property
    def ready(self) -> bool:
        """Whether training can read crops of the file without conversion, seeking cheaply."""
        facts = self.facts
        plain = facts.container in ("WAV", "WAVEX", "FLAC") and facts.encoding.startswith("PCM") and facts.stated
        return plain and facts.rate == SAMPLE_RATE and facts.channels == 1


@dataclass(frozen=True)
class Listing:
    """The files below a folder.

    Attributes:
        audio: absolute paths of audio files, sorted.
        others: how many other files there are, by suffix, or by what they are if not regular; "" for files without a
            suffix.
    """

    audio: list[Path]
    others: Counter[str] = field(default_factory=Counter)


def is_left_over(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that operating systems leave in folders and archives."""
    return name.startswith(".") or name in _LEFT_BY_SYSTEMS


def list_files(folder: Path) -> Listing:
    """List the files at any depth, without what is left over."""
    root = folder.resolve()
    listing = Listing([])
    suffixes = SUFFIXES | FFMPEG_SUFFIXES if has_ffmpeg() else SUFFIXES
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if any(map(is_left_over, parts)):
            continue
        if not path.is_file():
            if kind := _irregular(path):
                listing.others[kind] += 1
            continue
        suffix = path.suffix.lower()
        if suffix in suffixes:
            listing.audio.append(path)
        else:
            listing.others[suffix] += 1
    return listing


def _irregular(path: Path) -> str:
    """Return what is neither a file nor a folder that is listed; empty for such a folder."""
    if path.is_dir():
        if path.is_symlink():
            return "links to folders"
        return "" if os.access(path, os.R_OK | os.X_OK) else "folders that may not be read"
    return "links that lead to no file" if path.is_symlink() else "pipes, sockets or devices"


def passed_over(others: Counter[str]) -> str:
    """Return the counts of files by suffix as text, such as "8 .m4a, 1 without a suffix", the most frequent first."""
    counts = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in others.most_common())
    extra = ", ".join(sorted(FFMPEG_SUFFIXES & others.keys()))
    return f"{counts}; pip install 'speakerlens[formats]' for {extra}" if extra else counts


def read_whole(
    paths: Sequence[Path], what: str, console: Console, channel: int | None = None
) -> tuple[dict[Path, Source], dict[Path, str]]:
    """Read files whole, so that damaged files are reported before anything is written.

    Args:
        paths: absolute paths.
        what: what the files are, for the progress bar.
        console: shows progress.
        channel: the one to use, from 0; None for the mean of all.

    Returns:
        The sources of the readable files, and for each other file an error message that names it.
    """
    chunks = [paths[first : first + _CHUNK] for first in range(0, len(paths), _CHUNK)]
    reading = partial(_read_all, channel=channel)
    found = chain.from_iterable(in_threads(reading, chunks, f"reading {what}", console, _READERS))
    sources: dict[Path, Source] = {}
    refused: dict[Path, str] = {}
    for path, result in zip(paths, found, strict=True):
        if isinstance(result, str):
            refused[path] = result
        else:
            sources[path] = Source(path, result, channel)
    return sources, refused


def in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item], what: str, console: Console, threads: int
) -> list[_Result]:
    """Return `function` of every item, computed in threads, in order; show progress under the title `what`."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            results = pool.map(function, items)
            quiet = not console.is_terminal
            return list(track(results, what, len(items), console=console, transient=True, disable=quiet))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _read_all(paths: Sequence[Path], channel: int | None) -> list[AudioFacts | str]:
    return [_read(path, channel) for path in paths]


def _read(path: Path, channel: int | None) -> AudioFacts | str:
    if not is_utf8(str(path)):
        return f"{str(path)!r}: the name is not UTF-8"
    try:
        return measure_audio(path, channel)
    except UserError as error:
        return str(error)
