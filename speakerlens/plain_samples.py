"""Plain samples of WAV files: integers and floats that need no decoder."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.chunks import Layout

_CONTAINERS = ("WAV", "RF64", "W64")
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# The rest of the GUID of an extensible format, after the number of the coding.
_SUBFORMAT = bytes.fromhex("000000001000800000aa00389b71")
# By coding and bits: NumPy's type, the name of the encoding, and the value of full scale.
_STORED: dict[tuple[int, int], tuple[str, str, float]] = {
    (_PCM, 8): ("<u1", "PCM_U8", 2.0**7),
    (_PCM, 16): ("<i2", "PCM_16", 2.0**15),
    (_PCM, 24): ("<u1", "PCM_24", 2.0**31),
    (_PCM, 32): ("<i4", "PCM_32", 2.0**31),
    (_FLOAT, 32): ("<f4", "FLOAT", 1.0),
    (_FLOAT, 64): ("<f8", "DOUBLE", 1.0),
}


@dataclass(frozen=True)
class PlainForm:
    """How plain samples are stored: number of channels, rate in Hz, coding and bits of a sample."""

    channels: int
    rate: int
    coding: int
    bits: int

    @property
    def encoding(self) -> str:
        """Return the name of the encoding, as libsndfile has it."""
        return _STORED[self.coding, self.bits][1]

    @property
    def frame_bytes(self) -> int:
        """Return the bytes of one sample of every channel."""
        return self.channels * self.bits // 8

    def floats(self, stored: bytes | memoryview) -> NDArray[np.float32]:
        """Return whole frames, float32 [frames, channels], as libsndfile does: integers divided by full scale."""
        kind, encoding, full_scale = _STORED[self.coding, self.bits]
        values: NDArray[Any] = np.frombuffer(stored, kind)
        if encoding == "PCM_24":
            wide = np.zeros((len(values) // 3, 4), np.uint8)
            wide[:, 1:] = values.reshape(-1, 3)
            values = wide.view("<i4")[:, 0]
        elif encoding == "PCM_U8":
            values = values.astype(np.int16) - 128
        scaled: NDArray[np.float32]
        if full_scale == 1.0:
            with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite, and is refused
                scaled = values.astype(np.float32)
        else:
            scaled = np.multiply(values, np.float32(1.0 / full_scale), dtype=np.float32)
        return scaled.reshape(-1, self.channels)


def plain_form(found: Layout) -> PlainForm | None:
    """Return the form of the plain samples of a file; None if a decoder must read them, or for the least doubt."""
    if found.container not in _CONTAINERS or len(found.description) < 16:
        return None
    coding, channels, rate, bytes_per_second, frame_bytes, bits = struct.unpack_from("<HHIIHH", found.description)
    if coding == _EXTENSIBLE and len(found.description) >= 40 and found.description[26:40] == _SUBFORMAT:
        coding = struct.unpack_from("<H", found.description, 24)[0]
    form = PlainForm(channels, rate, coding, bits)
    if (coding, bits) not in _STORED or not channels or not rate:
        return None
    return form if (frame_bytes, bytes_per_second) == (form.frame_bytes, rate * form.frame_bytes) else None
