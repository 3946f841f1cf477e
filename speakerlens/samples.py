"""Samples in the forms that speech libraries hold them, as one: arrays [samples] or [samples, channels]."""

from array import array
from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

MAX_CHANNELS = 8
PACKED = {"uint8": 1, "int24": 3, "int32": 4, "float64": 8}  # bytes a sample
_BYTES = ("B", "b", "c")  # formats of a memoryview on a file's content
# Full scale of integers that are no 16-bit samples, and what is subtracted first.
_SCALES = {np.dtype(np.int32): (2.0**31, 0.0), np.dtype(np.uint8): (2.0**7, 2.0**7), np.dtype(np.int8): (2.0**7, 0.0)}


@runtime_checkable
class SupportsArray(Protocol):
    """What numpy can read: its arrays, and tensors of torch, JAX and others."""

    def __array__(self) -> NDArray[Any]:
        """Return the values as an array."""


def with_rate(audio: object, rate: object) -> tuple[object, int | None]:
    """Return audio and its rate, taken from where libraries keep both together.

    Args:
        audio: samples or a file; or `(samples, rate)`, `(rate, samples)`, `{"waveform": samples, "sample_rate": rate}`,
            `{"array": samples, "sampling_rate": rate}` as datasets of Hugging Face have it, or an open
            `soundfile.SoundFile`.
        rate: in Hz, a whole number of any type, or None.

    Raises:
        ValueError: the rate is no whole number, or one is given beside that of the audio.
    """
    given = _hertz(rate) if rate is not None else None
    held = _held(audio)
    if held is None:
        return audio, given
    samples, own = held[0], _hertz(held[1])
    if given is not None and given != own:
        raise ValueError(f"rate: {given} is given, and {own} with the samples")
    return samples, own


def _held(audio: object) -> tuple[object, object] | None:
    """Return samples and their rate from an object that has both; None for any other."""
    if isinstance(audio, tuple) and len(audio) == 2:
        first, second = audio
        if _is_number(first) != _is_number(second):
            return (second, first) if _is_number(first) else (first, second)
    if isinstance(audio, Mapping):
        samples = next((audio[key] for key in ("array", "waveform", "raw") if key in audio), None)
        rate = next((audio[key] for key in ("sampling_rate", "sample_rate") if key in audio), None)
        if samples is not None and rate is not None:
            return samples, rate
    rate, read = getattr(audio, "samplerate", None), getattr(audio, "read", None)
    return (read(dtype="float32"), rate) if rate is not None and callable(read) else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float | np.integer | np.floating)


def _hertz(rate: object) -> int:
    if isinstance(rate, bool) or not _is_number(rate) or not float(rate).is_integer():
        raise ValueError(f"rate: {rate!r} is no whole number of Hz")
    return int(rate)


def as_array(audio: object) -> NDArray[Any] | None:
    """Return samples as floats in [-1, 1] or int16, [samples] or [samples, channels]; None if they are no array.

    Args:
        audio: an array of numpy or the standard library, a tensor, or a list of floats; [samples], [samples, channels]
            or [channels, samples]. The channels are the dimension that has at most eight. int32 has its full scale at
            2^31, as 24-bit files are read, uint8 around 128.

    Raises:
        ValueError: the type or the shape is none of samples.
    """
    if isinstance(audio, array) or (isinstance(audio, memoryview) and audio.format not in _BYTES):
        values = np.asarray(audio)
    elif isinstance(audio, list | tuple):
        values = _listed(audio)
    elif isinstance(audio, SupportsArray):
        values = _read(audio)
    else:
        return None
    if values.ndim not in (1, 2):
        batch = "; take one of a batch, such as samples[0]" if values.ndim == 3 else ""
        raise ValueError(
            f"samples must be [samples], [samples, channels] or [channels, samples], not {_shape(values)}{batch}"
        )
    if values.ndim == 2 and values.shape[1] > MAX_CHANNELS:
        if values.shape[0] > MAX_CHANNELS:
            raise ValueError(f"samples {_shape(values)}: one dimension must be the channels, {MAX_CHANNELS} at most")
        values = values.T
    if values.dtype in _SCALES:
        scale, middle = _SCALES[values.dtype]
        return ((values.astype(np.float64) - middle) / scale).astype(np.float32)
    if values.dtype != np.int16 and not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"samples must be floats in [-1, 1], or int16, int32 or uint8, not {values.dtype}")
    return values


def _listed(audio: list[Any] | tuple[Any, ...]) -> NDArray[Any]:
    try:
        values = np.asarray(audio)
    except ValueError:
        raise ValueError("samples in a list must be numbers, and as many in each channel") from None
    if values.dtype.kind in "USO":
        raise ValueError("a list must hold the samples, as floats, of one utterance; for several, see identify_batch")
    if values.size and np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            "whole numbers in a list have no full scale; make an array, such as np.array(samples, np.int16)"
        )
    return values


def _read(audio: SupportsArray) -> NDArray[Any]:
    """Return the values of a tensor, also of one in training, on a GPU, or of a type that numpy does not have."""
    held: Any = audio
    for step in ("detach", "cpu"):
        held = getattr(held, step)() if hasattr(held, step) else held
    if "bfloat16" in str(getattr(held, "dtype", "")):
        held = held.float() if hasattr(held, "float") else held.astype(np.float32)
    values = np.asarray(held)
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _shape(values: NDArray[Any]) -> str:
    return str(list(values.shape))


def packed(data: bytes, encoding: str) -> tuple[bytes, str]:
    """Return samples of an encoding that servers do not know as float32; others as they are.

    Args:
        data: little-endian samples.
        encoding: uint8, int24 (three bytes a sample), int32 or float64; or any other.

    Returns:
        The bytes and the name of their encoding.

    Raises:
        ValueError: the bytes are not whole samples.
    """
    if encoding not in PACKED:
        return data, encoding
    width = PACKED[encoding]
    if len(data) % width:
        raise ValueError(f"data: {len(data)} bytes are no whole number of {encoding} samples")
    if encoding == "float64":
        values = np.frombuffer(data, "<f8")
    elif encoding == "uint8":
        values = (np.frombuffer(data, np.uint8) - 2.0**7) / 2.0**7
    else:
        # The bytes of a sample are the highest of 32 bits, so that the sign is in its place.
        words = np.zeros((len(data) // width, 4), np.uint8)
        words[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
        values = words.reshape(-1).view("<i4") / 2.0**31
    return values.astype("<f4").tobytes(), "float32"
