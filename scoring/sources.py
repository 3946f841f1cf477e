"""What is scored: paths, bytes of files, or arrays of samples; grouped so that memory stays small."""

import os
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.samples import as_array, with_rate
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio

Source = str | PathLike[str] | bytes | NDArray[Any] | tuple[NDArray[Any], int]
"""A path, a whole file, samples at 16 kHz, or samples with their rate; samples as of `speakerlens.samples`."""

# A group is ordered by length before it is computed. More would save hardly any padding.
GROUP_SOURCES = 128
GROUP_BYTES = 64 * 2**20


def groups(sources: Iterable[tuple[str, Source]]) -> Iterator[list[tuple[str, Source]]]:
    """Yield named sources in groups of at most GROUP_SOURCES, and about GROUP_BYTES as they lie on disk."""
    group: list[tuple[str, Source]] = []
    size = 0
    for name, source in sources:
        added = _bytes_of(source)
        if group and (len(group) == GROUP_SOURCES or size + added > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append((name, source))
        size += added
    if group:
        yield group


def named(sources: Iterable[Source], names: Iterable[str] | None) -> Iterator[tuple[str, Source]]:
    """Yield sources with their names: as given, else a path itself, else a number from 0.

    Raises:
        ValueError: there are more or fewer names than sources.
    """
    if names is not None:
        yield from zip(names, sources, strict=True)
        return
    for number, source in enumerate(sources):
        yield _path_name(source) if isinstance(source, str | PathLike) else str(number), source


def _path_name(path: str | PathLike[str]) -> str:
    """Return a path as text that every format can hold: bytes that are no UTF-8 in hexadecimal."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read(source: Source) -> EncodedAudio | RawAudio:
    """Return the audio of a source, not decoded yet; reads a path.

    Raises:
        OSError: the file cannot be read.
        ValueError: the samples have a type or a shape that is none of samples.
    """
    if isinstance(source, str | PathLike):
        return EncodedAudio(Path(source).read_bytes())
    if isinstance(source, bytes | bytearray | memoryview):
        return EncodedAudio(bytes(source))
    samples, rate = with_rate(source, None)
    values = as_array(samples)
    if values is None:
        raise ValueError(f"{type(source).__name__} is neither a path, nor bytes, nor samples")
    if values.dtype != np.int16:
        values = values.astype(np.float32, copy=False)
    channels = 1 if values.ndim == 1 else values.shape[1]
    return RawAudio(np.ascontiguousarray(values).tobytes(), str(values.dtype), rate or SAMPLE_RATE, channels)


def _bytes_of(source: Source) -> int:
    if isinstance(source, str | PathLike):
        try:
            return Path(source).stat().st_size
        except OSError:  # reading it says why
            return 0
    held: Any = source[0] if isinstance(source, tuple) else source
    return int(getattr(held, "nbytes", 0)) or len(held)
