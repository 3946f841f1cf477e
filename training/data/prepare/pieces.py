"""Source files of a corpus: inspect them, assign them to splits, and convert those that training cannot read."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from speakerlens.training.data.audio import (
    SAMPLE_RATE,
    AudioHeader,
    audio_header,
    read_audio,
    without_offset,
    write_audio,
)
from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, Clip, Kind, Split
from speakerlens.training.errors import UserError

SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc".split()
)
"""Suffixes of audio files; other files, such as transcripts, are ignored."""
SPLITS: tuple[Split, ...] = get_args(Split)
REMEDY = f"remove such files, or join clips with --min-seconds, from {SHORTEST_UTTERANCE:g} up"

_NAMED = 5
_TOO_QUIET = 2.0**-16
"""Half a 16-bit quantisation step: peaks below it are rounded to 0."""
_READERS = 16
"""Threads that open files; more than cores, as they wait for disks."""
_CHUNK = 64
"""Files per task: submitting a task costs more than opening a file."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Source:
    """An audio file and its header."""

    path: Path
    header: AudioHeader

    @property
    def ready(self) -> bool:
        """Whether training can read crops of the file without conversion, seeking cheaply."""
        header = self.header
        plain = header.container in ("WAV", "WAVEX", "FLAC") and header.encoding.startswith("PCM")
        return plain and header.rate == SAMPLE_RATE and header.channels == 1


@dataclass(frozen=True)
class Piece:
    """A future clip of the corpus: its sources, and the file to write where they need conversion."""

    sources: tuple[Source, ...]
    target: Path
    kind: Kind
    split: Split
    speaker: str | None

    @property
    def ready(self) -> bool:
        """Whether it is one file that needs no conversion."""
        return len(self.sources) == 1 and self.sources[0].ready


@dataclass(frozen=True)
class Shares:
    """Shares of the splits.

    Attributes:
        dev, test: in (0, 1); the rest is train.
        seed: of the random assignment.
    """

    dev: float = 0.1
    test: float = 0.2
    seed: int = 0


def audio_files(folder: Path) -> list[Path]:
    """Return the absolute paths of all audio files at any depth, sorted, without hidden ones."""
    found = (
        path
        for path in folder.resolve().rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    return sorted(path for path in found if path.is_file())


def read_headers(paths: Sequence[Path], what: str, console: Console) -> tuple[dict[Path, Source], dict[Path, str]]:
    """Read the headers of files, so that unreadable files are reported before anything is written.

    Args:
        paths: absolute paths.
        what: what the files are, for the progress bar.
        console: shows progress.

    Returns:
        The sources of the usable files, and for each other file an error message that names it.
    """
    chunks = [paths[first : first + _CHUNK] for first in range(0, len(paths), _CHUNK)]
    found = chain.from_iterable(in_threads(_inspect_all, chunks, f"reading {what}", console, _READERS))
    sources: dict[Path, Source] = {}
    refused: dict[Path, str] = {}
    for path, result in zip(paths, found, strict=True):
        if isinstance(result, str):
            refused[path] = result
        else:
            sources[path] = Source(path, result)
    return sources, refused


def in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item], what: str, console: Console, threads: int
) -> list[_Result]:
    """Return `function` of every item, computed in threads, in order; show progress under the title `what`."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(track(pool.map(function, items), what, len(items), console=console, transient=True))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def share_out(seconds: Sequence[float], shares: dict[Split, float], min_seconds: float = 0.0) -> dict[Split, list[int]]:
    """Assign files, given by their lengths in random order, to test, dev and train.

    Test and dev each get their share of the files, rounded, but at least one file and at least `min_seconds` in all;
    train gets the rest, which may be empty.

    Returns:
        The indices of each split's files.
    """
    parts: dict[Split, list[int]] = {"train": [], "dev": [], "test": []}
    first = 0
    for split, share in shares.items():
        count, total = max(1, round(share * len(seconds))), 0.0
        while first < len(seconds) and (len(parts[split]) < count or total < min_seconds):
            parts[split].append(first)
            total += seconds[first]
            first += 1
    parts["train"] = list(range(first, len(seconds)))
    return parts


def split_randomly(
    items: Sequence[_Item], seconds: Sequence[float], name: str, shares: Shares, min_seconds: float = 0.0
) -> dict[Split, list[_Item]]:
    """Assign items to splits at random, keeping their order within a split.

    Args:
        items: files, or groups that must stay together.
        seconds: their lengths; used only if `min_seconds` is above 0.
        name: seeds the assignment besides `shares.seed`, so that groups of items are independent of each other.
        shares: of the splits, and the seed.
        min_seconds: least total length of test and of dev.
    """
    rng = np.random.default_rng([shares.seed, *name.encode()])
    shuffled = [int(index) for index in rng.permutation(len(items))]
    parts = share_out([seconds[index] for index in shuffled], {"test": shares.test, "dev": shares.dev}, min_seconds)
    return {
        split: [items[index] for index in sorted(shuffled[place] for place in part)] for split, part in parts.items()
    }


def convert(pieces: Sequence[Piece], folder: Path, console: Console) -> list[Clip]:
    """Convert the pieces that need it into files in `folder`, in threads.

    Returns:
        A clip for each piece, in their order.

    Raises:
        UserError: a file cannot be decoded, or what is left of it is too short or silent; the message names it.
    """
    unready = [piece for piece in pieces if not piece.ready]
    converting = partial(_write_clip, folder=folder)
    written = iter(in_threads(converting, unready, "converting", console, os.cpu_count() or 1))
    return [_clip_in_place(piece) if piece.ready else next(written) for piece in pieces]


def too_short(piece: Piece, seconds: float) -> str:
    """Return the message for a piece that is too short for an utterance."""
    return f"{piece.sources[0].path}: lasts {seconds:g} s, and must last at least {SHORTEST_UTTERANCE:g} s"


def is_utf8(name: str) -> bool:
    """Return whether a name is valid UTF-8; Python decodes other names with lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def some(items: Iterable[str], separator: str = ", ") -> str:
    """Return the first five items joined, and how many more there are."""
    named = list(items)
    rest = len(named) - _NAMED
    return separator.join(named[:_NAMED]) + (f"{separator}and {rest} more" if rest > 0 else "")


def _inspect_all(paths: Sequence[Path]) -> list[AudioHeader | str]:
    return [_inspect(path) for path in paths]


def _inspect(path: Path) -> AudioHeader | str:
    if not is_utf8(str(path)):
        return f"{str(path)!r}: the name is not UTF-8"
    try:
        return audio_header(path)
    except UserError as error:
        return str(error)


def _clip_in_place(piece: Piece) -> Clip:
    source = piece.sources[0]
    return Clip(source.path, piece.kind, piece.split, 0.0, source.header.seconds, piece.speaker)


def _write_clip(piece: Piece, folder: Path) -> Clip:
    # Channels of an impulse response are different microphones; their mean is not the response of a room.
    channel = 0 if piece.kind == "rir" else None
    parts = [read_audio(source.path, channel=channel) for source in piece.sources]
    if len(parts) > 1:  # offsets differ between recordings: joining would make a step
        parts = [without_offset(part) for part in parts]
    samples = np.concatenate(parts)
    if not len(samples):
        raise UserError(f"{piece.sources[0].path}: holds no audio")
    if piece.speaker is not None:
        _check_converted(piece, samples)
    write_audio(folder / piece.target, _scale(samples, piece.kind))
    return Clip(piece.target, piece.kind, piece.split, 0.0, len(samples) / SAMPLE_RATE, piece.speaker)


def _check_converted(piece: Piece, samples: NDArray[np.float32]) -> None:
    """Raise UserError if resampling, mixing down or rounding to 16 bits left too little; headers do not show it."""
    if len(samples) < SHORTEST_UTTERANCE * SAMPLE_RATE:
        raise UserError(f"{too_short(piece, len(samples) / SAMPLE_RATE)}; {REMEDY}")
    if np.abs(samples).max() < _TOO_QUIET:
        raise UserError(f"{piece.sources[0].path}: is digital silence as 16-bit mono; {REMEDY}")


def _scale(samples: NDArray[np.float32], kind: Kind) -> NDArray[np.float32]:
    """Scale samples [N] that would clip to a peak of 0.99; impulse responses always, as their level is arbitrary."""
    peak = float(np.abs(samples).max())
    if peak > 1.0 or (kind == "rir" and peak > 0.0):
        return samples * np.float32(0.99 / peak)
    return samples


def in_processes(work: Callable[[_Item], _Result], jobs: Sequence[_Item], fresh: bool = False) -> Iterator[_Result]:
    """Yield `work` of every job, in order, computed in two processes.

    A fork server is used because forking a process with threads is not safe, and spawning is slow.

    Args:
        work: a module-level function.
        jobs: its arguments; they and the results are pickled.
        fresh: whether every job gets a process of its own.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    # The parent handles Ctrl-C.
    with context.Pool(2, signal.signal, (signal.SIGINT, signal.SIG_IGN), maxtasksperchild=1 if fresh else None) as pool:
        yield from pool.imap(work, jobs, chunksize=1)
