"""Files on their way into a corpus: looked at, shared out to the splits, and converted if training cannot read them."""

import os
from collections.abc import Callable, Iterable, Sequence
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
"""Which files are taken for audio; others, such as transcripts, are passed over."""
SPLITS: tuple[Split, ...] = get_args(Split)
CURE = f"take such files out, or join clips with --min-seconds, from {SHORTEST_UTTERANCE:g} up"

_NAMED = 5
_TOO_QUIET = 2.0**-16
"""Half a step of 16 bits: what does not reach it is rounded to nothing when it is written."""
_READERS = 16
"""Threads that open files: more than processors, because they wait for disks."""
_CHUNK = 64
"""Files that a thread opens in one go: handing each over singly would cost more than opening it."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Source:
    """An audio file, and what it says about itself."""

    path: Path
    header: AudioHeader

    @property
    def ready(self) -> bool:
        """Whether training can read crops of the file as it is: nothing to convert, and seeking is cheap."""
        header = self.header
        plain = header.container in ("WAV", "WAVEX", "FLAC") and header.encoding.startswith("PCM")
        return plain and header.rate == SAMPLE_RATE and header.channels == 1


@dataclass(frozen=True)
class Piece:
    """A clip of the corpus to be: what it is made of, and where to put it unless it can stay where it is."""

    sources: tuple[Source, ...]
    target: Path
    kind: Kind
    split: Split
    speaker: str | None

    @property
    def ready(self) -> bool:
        """Whether it is one file that can stay where it is."""
        return len(self.sources) == 1 and self.sources[0].ready


@dataclass(frozen=True)
class Shares:
    """How things are shared out to the splits.

    Attributes:
        dev, test: shares; the rest is train.
        seed: of who gets what.
    """

    dev: float = 0.1
    test: float = 0.2
    seed: int = 0


def audio_files(folder: Path) -> list[Path]:
    """Find audio files at any depth, in order, by their absolute paths; hidden ones are passed over."""
    found = (
        path
        for path in folder.resolve().rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    return sorted(path for path in found if path.is_file())


def read_headers(paths: Sequence[Path], what: str, console: Console) -> tuple[dict[Path, Source], dict[Path, str]]:
    """Read the headers of files, given by absolute paths, so that what cannot be read is named before any work.

    Returns:
        The sources of those that can be used; and of the others, why not, in words that name the file.
    """
    chunks = [paths[first : first + _CHUNK] for first in range(0, len(paths), _CHUNK)]
    found = chain.from_iterable(in_threads(_look, chunks, f"looking at {what}", console, _READERS))
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
    """Call a function that waits for files, or lets other threads run, for every item; shows how far it is."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(track(pool.map(function, items), what, len(items), console=console, transient=True))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def share_out(seconds: Sequence[float], shares: dict[Split, float], min_seconds: float = 0.0) -> dict[Split, list[int]]:
    """Share out files, given by their lengths and in random order, to test, dev and train.

    Test and dev each get their share of the files, rounded, but at least one file and at least `min_seconds` in all;
    train gets the rest, and where there is none, nothing.

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
    """Part items at random, each part in their order; `name` seeds as well, so that other items change nothing.

    Args:
        items: files, or whatever must stay together.
        seconds: their lengths, which decide only where `min_seconds` is above 0.
        name: what they are.
        shares: of the splits.
        min_seconds: at least this long must test and dev be.
    """
    rng = np.random.default_rng([shares.seed, *name.encode()])
    shuffled = [int(index) for index in rng.permutation(len(items))]
    parts = share_out([seconds[index] for index in shuffled], {"test": shares.test, "dev": shares.dev}, min_seconds)
    return {
        split: [items[index] for index in sorted(shuffled[place] for place in part)] for split, part in parts.items()
    }


def convert(pieces: Sequence[Piece], folder: Path, console: Console) -> list[Clip]:
    """Write what needs writing into `folder`; decoding, resampling and encoding let other threads run.

    Returns:
        A clip for each piece.

    Raises:
        UserError: a file breaks while it is read, or leaves nothing to hear; the message names it.
    """
    unready = [piece for piece in pieces if not piece.ready]
    converting = partial(_write_clip, folder=folder)
    written = iter(in_threads(converting, unready, "converting", console, os.cpu_count() or 1))
    return [_clip_in_place(piece) if piece.ready else next(written) for piece in pieces]


def too_short(piece: Piece, seconds: float) -> str:
    """Say that a piece is too short to be an utterance."""
    return f"{piece.sources[0].path}: lasts {seconds:g} s, and must last at least {SHORTEST_UTTERANCE:g} s"


def is_utf8(name: str) -> bool:
    """Whether a name can be written into a manifest; Python reads other names' bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def some(items: Iterable[str], separator: str = ", ") -> str:
    """Name the first few."""
    named = list(items)
    rest = len(named) - _NAMED
    return separator.join(named[:_NAMED]) + (f"{separator}and {rest} more" if rest > 0 else "")


def _look(paths: Sequence[Path]) -> list[AudioHeader | str]:
    return [_look_at(path) for path in paths]


def _look_at(path: Path) -> AudioHeader | str:
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
    # The channels of an impulse response are microphones at different places: their mean is no room's response.
    channel = 0 if piece.kind == "rir" else None
    parts = [read_audio(source.path, channel=channel) for source in piece.sources]
    if len(parts) > 1:  # each recording has an offset of its own, and from one to the next there would be a step
        parts = [without_offset(part) for part in parts]
    samples = np.concatenate(parts)
    if not len(samples):
        raise UserError(f"{piece.sources[0].path}: holds no audio")
    if piece.speaker is not None:
        _check_converted(piece, samples)
    write_audio(folder / piece.target, _fit(samples, piece.kind))
    return Clip(piece.target, piece.kind, piece.split, 0.0, len(samples) / SAMPLE_RATE, piece.speaker)


def _check_converted(piece: Piece, samples: NDArray[np.float32]) -> None:
    """Raise UserError for what no header tells: resampling drops a sample, channels cancel, 16 bits are too few."""
    if len(samples) < SHORTEST_UTTERANCE * SAMPLE_RATE:
        raise UserError(f"{too_short(piece, len(samples) / SAMPLE_RATE)}; {CURE}")
    if np.abs(samples).max() < _TOO_QUIET:
        raise UserError(f"{piece.sources[0].path}: is digital silence in 16 bits, as mono; {CURE}")


def _fit(samples: NDArray[np.float32], kind: Kind) -> NDArray[np.float32]:
    """Scale down what would clip; an impulse response, of which only the shape matters, to use the whole range."""
    peak = float(np.abs(samples).max())
    if peak > 1.0 or (kind == "rir" and peak > 0.0):
        return samples * np.float32(0.99 / peak)
    return samples
