"""The packed corpus: one flat file of 16-bit samples, mapped into memory; a crop is a slice of it.

The file is RF64 (EBU Tech 3306), the 64-bit version of WAV, which libsndfile, sox and ffmpeg read too. Its header has a
fixed layout.
"""

import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.errors import UserError

PACKED = "packed.rf64"
"""Name of the file in a packed corpus."""

HEADER_BYTES = 80
PCM_SCALE = 32_768
"""Full scale of 16-bit samples, as in libsndfile."""

_IN_DS64 = 0xFFFFFFFF  # the size is in the ds64 chunk


def packed_header(samples: int, rate: int) -> bytes:
    """Return the header (80 bytes) of a mono 16-bit RF64 file."""
    size = 2 * samples
    riff = struct.pack("<4sI4s", b"RF64", _IN_DS64, b"WAVE")
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, HEADER_BYTES - 8 + size, size, samples, 0)
    coding = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return riff + sizes + coding + struct.pack("<4sI", b"data", _IN_DS64)


def packed_samples(path: Path, rate: int) -> NDArray[np.int16]:
    """Map a packed file into memory; return its samples [N], int16.

    Raises:
        OSError: it cannot be read.
        UserError: it is incomplete, or not a packed file of that rate.
    """
    status = path.stat()
    return _mapped(path, rate, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _mapped(path: Path, rate: int, size: int, changed: int) -> NDArray[np.int16]:
    samples = (size - HEADER_BYTES) // 2
    with path.open("rb") as file:
        if samples <= 0 or file.read(HEADER_BYTES) != packed_header(samples, rate):
            raise UserError(f"{path}: damaged, cut short, or not a packed corpus; pack the corpus again")
    return np.memmap(path, dtype="<i2", mode="r", offset=HEADER_BYTES, shape=(samples,))


def to_pcm(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return float32 samples [N] rounded to int16 and clipped to [-1, 1]; exact for 16-bit sources."""
    return np.clip(np.rint(samples * PCM_SCALE), -PCM_SCALE, PCM_SCALE - 1).astype("<i2")


def from_pcm(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return int16 samples [N] as float32 in [-1, 1), scaled as libsndfile does."""
    return np.multiply(samples, 1 / PCM_SCALE, dtype=np.float32)
