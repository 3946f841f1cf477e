"""Pieces of a corpus: assign source files to splits, and convert those that training cannot read in place."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from speakerlens.processor import cores
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, without_offset, write_audio
from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, SPLITS, Clip, Kind, Split
from speakerlens.training.data.prepare.inspection import Source, in_threads
from speakerlens.training.errors import UserError

REMEDY = f"remove such files, or join clips with --min-seconds, from {SHORTEST_UTTERANCE:g} up"

TOO_QUIET = 2.0**-16
"""Half a 16-bit quantisation step: peaks below it are rounded to 0."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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

    @property
    def wanted(self) -> dict[Split, float]:
        """The shares by split, for `split_randomly`."""
        return {"test": self.test, "dev": self.dev}


def share_out(
    seconds: Sequence[float],
    shares: Mapping[Split, float],
    min_seconds: float = 0.0,
    sizes: Sequence[int] | None = None,
) -> dict[Split, list[int]]:
    """Assign groups of files, given in random order, to train and the splits in `shares`.

    These each get groups with at most their share of the files, rounded, but at least one group, and at least
    `min_seconds` in all; train gets the rest, which may be empty. Where there are enough groups, every split gets one.

    Args:
        seconds: length of each group.
        shares: of the files, for the splits other than train.
        min_seconds: least total length of each of these splits.
        sizes: files of each group; one each if None.

    Returns:
        The indices of each split's groups.
    """
    counts = [1] * len(seconds) if sizes is None else sizes
    rest = list(range(len(seconds)))
    parts: dict[Split, list[int]] = {"train": []}
    for after, (split, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        part = _fitting(rest, counts, max(1, round(share * sum(counts))), len(rest) - after)
        if not part and rest:
            part = [min(rest, key=lambda index: counts[index])]
        rest = [index for index in rest if index not in part]
        while rest and sum(seconds[index] for index in part) < min_seconds:
            part.append(rest.pop(0))
        parts[split] = part
    parts["train"] = rest
    return {split: parts[split] for split in SPLITS if split in parts}


def _fitting(rest: Sequence[int], counts: Sequence[int], target: int, most: int) -> list[int]:
    """Return the first groups, at most `most`, that have together at most `target` files."""
    part: list[int] = []
    held = 0
    for index in rest:
        if len(part) < most and held + counts[index] <= target:
            part.append(index)
            held += counts[index]
    return part


def split_randomly(
    groups: Sequence[Sequence[_Item]],
    name: str,
    seed: int,
    shares: Mapping[Split, float],
    seconds: Sequence[float] | None = None,
    min_seconds: float = 0.0,
) -> dict[Split, list[Sequence[_Item]]]:
    """Assign groups of items that must stay together to splits at random, keeping their order within a split.

    Args:
        groups: of files, or of parts of them.
        name: seeds the assignment besides `seed`, so that collections are independent of each other.
        seed: of the random assignment.
        shares: of the items, for the splits other than train.
        seconds: the groups' lengths; needed only if `min_seconds` is above 0.
        min_seconds: least total length of each of these splits.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    shuffled = [int(index) for index in rng.permutation(len(groups))]
    lengths = [0.0 if seconds is None else seconds[index] for index in shuffled]
    parts = share_out(lengths, shares, min_seconds, [len(groups[index]) for index in shuffled])
    return {
        split: [groups[index] for index in sorted(shuffled[place] for place in part)] for split, part in parts.items()
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
    written = iter(in_threads(converting, unready, "converting", console, cores()))
    return [_clip_in_place(piece) if piece.ready else next(written) for piece in pieces]


def too_short(path: Path, seconds: float) -> str:
    """Return the message for an utterance, by its first file, that is too short."""
    return f"{path}: lasts {seconds:g} s, and must last at least {SHORTEST_UTTERANCE:g} s"


def _clip_in_place(piece: Piece) -> Clip:
    source = piece.sources[0]
    return Clip(source.path, piece.kind, piece.split, 0.0, source.seconds, piece.speaker)


def _write_clip(piece: Piece, folder: Path) -> Clip:
    parts = [read_audio(source.path, channel=source.channel) for source in piece.sources]
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
        raise UserError(f"{too_short(piece.sources[0].path, len(samples) / SAMPLE_RATE)}; {REMEDY}")
    if np.abs(samples).max() < TOO_QUIET:
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
