"""Samples on standard input: raw, or a WAV file as a program writes it to a pipe."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from speakerlens.chunks import chunk_layout
from speakerlens.plain_samples import PlainForm, plain_form
from speakerlens.requests import Chunk
from speakerlens.signatures import HEADER_BYTES, AudioFileError, chunked, header_name, other_content

_SAMPLE_BYTES = {"s16le": 2, "f32le": 4, "mulaw": 1, "alaw": 1}
_CHUNK_SECONDS = 0.1
_NAME_BYTES = 12
_MAX_HEADER_BYTES = 2**20
_READ_BYTES = 4_096
_RAW = "ffmpeg -i FILE -ac 1 -ar 16000 -f s16le - | speakerlens listen -"


@dataclass(frozen=True)
class LiveInput:
    """Sample rate in Hz, number of channels, and chunks: bytes of raw samples, or samples [frames, channels]."""

    rate: int
    channels: int
    chunks: Iterator[Chunk]


def live_input(source: BufferedReader, rate: int, channels: int, sample_type: str) -> LiveInput:
    """Return what arrives: with the rate and the channels of a WAV header, or as given for raw samples.

    Args:
        source: standard input.
        rate: of raw samples, in Hz.
        channels: of raw samples.
        sample_type: of raw samples: s16le, f32le, mulaw or alaw.

    Raises:
        AudioFileError: another file arrives, or a WAV of samples that need a decoder.
        OSError: the input cannot be read.
    """
    start = b""
    while len(start) < _NAME_BYTES and (more := source.read1(_READ_BYTES)):
        start += more
    if chunked(start) in ("WAV", "RF64"):
        return _wav(source, start)
    if name := header_name(start[:HEADER_BYTES]):
        raise AudioFileError(f"a whole {name} file, where samples without a header are expected, or WAV; use {_RAW}")
    if content := other_content(start):
        raise AudioFileError(content)
    size = max(1, round(_CHUNK_SECONDS * rate)) * channels * _SAMPLE_BYTES[sample_type]
    return LiveInput(rate, channels, chain([start] if start else [], iter(lambda: source.read1(size), b"")))


def _wav(source: BufferedReader, start: bytes) -> LiveInput:
    """Return the samples of a WAV file: to its end, or as many as its header says."""
    while True:
        try:
            found = chunk_layout(memoryview(start), "RF64" if start[:4] == b"RF64" else "WAV")
            break
        except AudioFileError:
            more = source.read1(_READ_BYTES)
            if not more or len(start) > _MAX_HEADER_BYTES:
                raise
            start += more
    form = plain_form(found)
    if form is None:
        raise AudioFileError(f"WAV whose samples need a decoder, which is for whole files; use {_RAW}")
    streamed = found.end == len(start) and not found.missing
    left = None if streamed else found.end - found.samples + found.missing
    return LiveInput(form.rate, form.channels, _frames(source, start[found.samples :], form, left))


def _frames(source: BufferedReader, start: bytes, form: PlainForm, left: int | None) -> Iterator[NDArray[np.float32]]:
    """Yield the frames of a WAV file, float32 [frames, channels]; `left`: bytes of them, None: all that come."""
    size = max(1, round(_CHUNK_SECONDS * form.rate)) * form.frame_bytes
    for data in _whole(source, start, form.frame_bytes, size):
        taken = data if left is None else data[:left]
        if len(taken) >= form.frame_bytes:
            yield form.floats(taken[: len(taken) - len(taken) % form.frame_bytes])
        if left is not None:
            left -= len(taken)
            if left <= 0:
                return


def _whole(source: BufferedReader, rest: bytes, width: int, size: int) -> Iterator[bytes]:
    """Yield what arrives as soon as it is there, cut at multiples of `width` bytes; a read may end within one."""
    while True:
        whole = len(rest) - len(rest) % width
        if whole:
            yield rest[:whole]
        data = source.read1(size)
        if not data:
            return
        rest = rest[whole:] + data
