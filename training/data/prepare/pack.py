"""The command `pack`: copy a corpus to one flat file."""

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
from speakerlens.training.errors import UserError
from speakerlens.training.files import building

_THREADS = 8
_AHEAD = 16
_MISSING_SECONDS = 0.01
"""A file may be this much shorter than its clip: headers of compressed files round the length."""


class _Decoded(NamedTuple):
    """A clip as 16-bit samples [N], and whether rounding or clipping changed it."""

    samples: NDArray[np.int16]
    rounded: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command `pack`."""
    parser.description = (
        "Copy all clips of a corpus, speech and interference, to one file of 16-bit samples at 16 kHz "
        "(115 MB per hour), from which training reads crops without decoding files. The original corpus is no "
        "longer needed. Evaluations draw interference by a clip's path and start, so reports made on the packed "
        "corpus cannot be compared with reports made on the original."
    )
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="folder that `prepare` made")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the packed corpus, missing or empty"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    pack(arguments.corpus, arguments.out, Console())
    return 0


def pack(corpus_folder: Path, out: Path, console: Console) -> Corpus:
    """Copy all clips of a corpus, speech and interference, to one file of 16-bit samples; return the new corpus.

    Clips change only their path and start, so that training draws the same crops and interference; the digest changes.
    Evaluations draw mixtures by path and start: reports of the two corpora cannot be compared. At the end every clip is
    read back as training reads it and compared by checksum. Only a few clips are in memory at a time.

    Raises:
        UserError: `out` is not free or its disk too small, or a clip is unreadable or shorter than the manifest says;
            `out` is not made then.
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
        f"{out}: {len(clips)} clips, {seconds / 3600:.1f} hours, {megabytes:,.0f} MB, verified",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    if rounded:
        console.print(f"{rounded} clips were not 16-bit at 16 kHz and were rounded", highlight=False)
    return load_corpus(out)


def _check_space(folder: Path, out: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{out}: needs {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB free")


def _write(corpus: Corpus, path: Path, console: Console) -> tuple[list[Clip], list[int], int]:
    """Write the samples; return the new clips, their checksums, and how many clips had to be rounded."""
    clips: list[Clip] = []
    checksums: list[int] = []
    rounded = written = 0
    with path.open("wb") as file, Progress(console=console) as progress:
        file.write(bytes(HEADER_BYTES))  # written last, when the size is known
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
    """Yield decoded clips in order, read ahead by several threads."""
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
            f"{clip.path}: has {len(audio) / SAMPLE_RATE:.2f} s from {clip.start:g} s on, but the manifest says "
            f"{clip.duration:.2f} s; prepare the corpus again"
        )
    samples = to_pcm(audio)
    return _Decoded(samples, not np.array_equal(from_pcm(samples), audio))


def _verify(packed: Corpus, checksums: list[int], out: Path, console: Console) -> None:
    """Read every clip as training does and compare its checksum; raise UserError on a difference."""
    pairs = zip(packed.clips, checksums, strict=True)
    for clip, checksum in track(pairs, "checking", total=len(checksums), console=console):
        if zlib.crc32(to_pcm(read_audio(clip.path, clip.start, clip.duration)).data) != checksum:
            raise UserError(f"{out}: samples at {clip.start:g} s differ from what was written; check the disk")
