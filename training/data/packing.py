"""One flat file of 16-bit samples for a whole corpus, mapped into memory: a crop is a slice of it.

The file is RF64 (EBU Tech 3306), the 64-bit sibling of WAV, so that libsndfile, sox and ffmpeg read it too; its header
always has the same layout.
"""

import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.errors import UserError

PACKED = "packed.rf64"
"""The name of the file in a packed corpus."""

HEADER_BYTES = 80
PCM_SCALE = 32_768
"""16-bit samples of full scale, as libsndfile counts them."""

_IN_DS64 = 0xFFFFFFFF  # stands for a size that the ds64 chunk gives


def packed_header(samples: int, rate: int) -> bytes:
    """Give the header [80 bytes] of a mono 16-bit RF64 file."""
    size = 2 * samples
    riff = struct.pack("<4sI4s", b"RF64", _IN_DS64, b"WAVE")
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, HEADER_BYTES - 8 + size, size, samples, 0)
    coding = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return riff + sizes + coding + struct.pack("<4sI", b"data", _IN_DS64)


def packed_samples(path: Path, rate: int) -> NDArray[np.int16]:
    """Map a packed file into memory, [samples].

    Raises OSError if it cannot be read, UserError if it is not whole, or not a packed file of that rate.
    """
    status = path.stat()
    return _mapped(path, rate, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _mapped(path: Path, rate: int, size: int, changed: int) -> NDArray[np.int16]:
    samples = (size - HEADER_BYTES) // 2
    with path.open("rb") as file:
        if samples <= 0 or file.read(HEADER_BYTES) != packed_header(samples, rate):
            raise UserError(
                f"{path}: damaged, cut short, or not made by `python -m training pack`; pack the corpus again"
            )
    return np.memmap(path, dtype="<i2", mode="r", offset=HEADER_BYTES, shape=(samples,))


def to_pcm(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Round samples in [-1, 1] to 16 bits; exact for what was read from 16-bit samples. Louder ones are clipped."""
    return np.clip(np.rint(samples * PCM_SCALE), -PCM_SCALE, PCM_SCALE - 1).astype("<i2")


def from_pcm(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Scale 16-bit samples to float32 in [-1, 1), as libsndfile does."""
    return np.multiply(samples, 1 / PCM_SCALE, dtype=np.float32)
