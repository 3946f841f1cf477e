"""Types of raw samples on the wire, as numbers of full scale 1.0."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "int16": np.dtype("<i2"),
    "mulaw": np.dtype("u1"),
    "alaw": np.dtype("u1"),
}


def floats(frames: NDArray[Any], sample_type: str) -> NDArray[np.float32]:
    """Return samples of one of `SAMPLE_TYPES` as float32 of the same shape, full scale 1.0."""
    if sample_type in LAWS:
        decoded: NDArray[np.float32] = LAWS[sample_type][frames]
        return decoded
    if sample_type == "int16":
        return frames.astype(np.float32) / np.float32(32768)
    return frames.astype(np.float32, copy=False)


def _mu_law() -> NDArray[np.float32]:
    """Return the samples of the 256 codes of ITU-T G.711 mu-law, full scale 1.0."""
    code = ~np.arange(256, dtype=np.uint8)
    size = (((code & 15).astype(np.int32) << 3) + 132 << (code >> 4 & 7)) - 132
    return (np.where(code & 128, -size, size) / 32768).astype(np.float32)


def _a_law() -> NDArray[np.float32]:
    """Return the samples of the 256 codes of ITU-T G.711 A-law, full scale 1.0."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    step, segment = (code & 15).astype(np.int32), (code >> 4 & 7).astype(np.int32)
    size = np.where(segment, (step << 4) + 264 << np.maximum(segment - 1, 0), (step << 4) + 8)
    return (np.where(code & 128, size, -size) / 32768).astype(np.float32)


LAWS = {"mulaw": _mu_law(), "alaw": _a_law()}
