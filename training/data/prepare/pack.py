"""A corpus in one flat file: `python -m training pack --corpus DIR --out DIR`."""

import argparse
import os
import shutil
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, track

from speakerlens.training.data.audio import SAMPLE_RATE, read_audio
from speakerlens.training.data.manifest import Clip, Corpus, load_corpus, write_corpus
from speakerlens.training.data.packing import HEADER_BYTES, PACKED, from_pcm, packed_header, to_pcm
from speakerlens.training.data.prepare.building import building
from speakerlens.training.errors import UserError

_THREADS = 8
_AHEAD = 16
_MISSING_SECONDS = 0.01
"""A file may be this much shorter than its clip says: lengths in headers of compressed files are rounded."""


class _Decoded(NamedTuple):
    """A clip as 16-bit samples, and whether it was rounded or clipped to become so."""

    samples: NDArray[np.int16]
    rounded: bool


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `pack` to the command line."""
    parser = subparsers.add_parser(
        "pack",
        help="copy a corpus to one file that training maps into memory",
        description="Copy all clips of a corpus, speech and interference, to one file of 16-bit samples at 16 kHz "
        "(115 MB an hour), from which training reads crops without opening and decoding files. It stands alone: the "
        "corpus it was made of is no longer needed. What is evaluated on it has other mixtures, as the interference of "
        "an evaluation is drawn by a clip's path and start: its reports are not to be compared with reports of the "
        "original.",
    )
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="folder that `prepare` made")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the packed corpus, missing or empty"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    pack(arguments.corpus, arguments.out, Console())
    return 0


def pack(corpus_folder: Path, out: Path, console: Console) -> Corpus:
    """Copy all clips of a corpus, speech and interference, to one file of 16-bit samples; return the new corpus.

    The clips keep their order and all that the manifest says of them but where they lie, so that the same crops and the
    same interference are drawn in training; the digest is another. The mixtures of an evaluation are others as well,
    for they are drawn by a clip's path and start: reports of the two corpora are not to be compared. Afterwards every
    clip is read back, as training will read it, and compared by checksum. Memory holds a few clips at a time.

    Raises:
        UserError: `out` is not free or the disk too small, or a clip cannot be read or is shorter than the manifest
            says; nothing is left behind then.
    """
    corpus = load_corpus(corpus_folder)
    with building(out) as folder:
        seconds = sum(clip.duration for clip in corpus.clips)
        _check_space(folder, out, 2 * round(seconds * SAMPLE_RATE))
        try:
            clips, checksums, rounded = _write(corpus, folder / PACKED, console)
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error.strerror})") from error
        packed = write_corpus(folder, clips)
        _verify(packed, checksums, out, console)
    megabytes = 2 * seconds * SAMPLE_RATE / 1e6
    console.print(
        f"{out}: {len(clips)} clips, {seconds / 3600:.1f} hours, {megabytes:,.0f} MB, read back and found equal",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    if rounded:
        console.print(f"{rounded} clips were not 16-bit at 16 kHz, and were rounded to that", highlight=False)
    return load_corpus(out)


def _check_space(folder: Path, out: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{out}: needs {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB free")


def _write(corpus: Corpus, path: Path, console: Console) -> tuple[list[Clip], list[int], int]:
    """Write the samples; return where each clip lies now, the checksum of each, and how many had to be rounded."""
    clips: list[Clip] = []
    checksums: list[int] = []
    rounded = written = 0
    with path.open("wb") as file, Progress(console=console) as progress:
        file.write(bytes(HEADER_BYTES))  # known at the end
        task = progress.add_task("packing", total=len(corpus.clips))
        for clip, decoded in zip(corpus.clips, _decode_all(corpus.clips), strict=True):
            samples = decoded.samples
            file.write(samples.data)
            start, duration = written / SAMPLE_RATE, len(samples) / SAMPLE_RATE
            clips.append(replace(clip, path=path, start=start, duration=duration))
            checksums.append(zlib.crc32(samples.data))
            written += len(samples)
            rounded += decoded.rounded
            progress.advance(task)
        _finish(file, written)
    return clips, checksums, rounded


def _finish(file: BinaryIO, samples: int) -> None:
    file.seek(0)
    file.write(packed_header(samples, SAMPLE_RATE))
    file.flush()
    os.fsync(file.fileno())


def _decode_all(clips: tuple[Clip, ...]) -> Iterator[_Decoded]:
    """Decode clips on several threads, in order and only so far ahead."""
    with ThreadPoolExecutor(_THREADS) as threads:
        pending: deque[Future[_Decoded]] = deque()
        try:
            for clip in clips:
                pending.append(threads.submit(_decode, clip))
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _decode(clip: Clip) -> _Decoded:
    audio = read_audio(clip.path, clip.start, clip.duration)
    if len(audio) < (clip.duration - _MISSING_SECONDS) * SAMPLE_RATE:
        raise UserError(
            f"{clip.path}: has {len(audio) / SAMPLE_RATE:.2f} s from {clip.start:g} s on, and the manifest says "
            f"{clip.duration:.2f} s; prepare the corpus again"
        )
    samples = to_pcm(audio)
    return _Decoded(samples, not np.array_equal(from_pcm(samples), audio))


def _verify(packed: Corpus, checksums: list[int], out: Path, console: Console) -> None:
    """Read every clip as training does, and compare. Raises UserError."""
    pairs = zip(packed.clips, checksums, strict=True)
    for clip, checksum in track(pairs, "checking", total=len(checksums), console=console):
        if zlib.crc32(to_pcm(read_audio(clip.path, clip.start, clip.duration)).data) != checksum:
            raise UserError(f"{out}: what was written at {clip.start:g} s reads otherwise; is the disk in order?")
