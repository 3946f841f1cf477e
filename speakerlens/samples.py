"""Samples in the forms that speech libraries hold them, as one: arrays [samples] or [samples, channels]."""

from array import array
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

MAX_CHANNELS = 8
# Full scale of integers that are no 16-bit samples, and what is subtracted first.
_SCALES = {np.dtype(np.int32): (2.0**31, 0.0), np.dtype(np.uint8): (2.0**7, 2.0**7), np.dtype(np.int8): (2.0**7, 0.0)}


@runtime_checkable
class SupportsArray(Protocol):
    """What numpy can read: its arrays, and tensors of torch, JAX and others."""

    def __array__(self) -> NDArray[Any]:
        """Return the values as an array."""


def with_rate(audio: object, rate: int | None) -> tuple[object, int | None]:
    """Return audio and its rate, taken from a pair such as `(samples, rate)` or `(rate, samples)` if it is one.

    Raises:
        ValueError: a rate is given beside the pair.
    """
    if not isinstance(audio, tuple) or len(audio) != 2:
        return audio, rate
    samples, own = (audio[1], audio[0]) if isinstance(audio[0], int | np.integer) else audio
    if not isinstance(own, int | np.integer) or isinstance(samples, int | float):
        return audio, rate
    if rate is not None and rate != own:
        raise ValueError(f"rate: {rate} is given, and {own} with the samples")
    return samples, int(own)


def as_array(audio: object) -> NDArray[Any] | None:
    """Return samples as floats in [-1, 1] or int16, [samples] or [samples, channels]; None if they are no array.

    Args:
        audio: an array of numpy or the standard library, a tensor, or a list of floats; [samples], [samples, channels]
            or [channels, samples]. The channels are the dimension that has at most eight. int32 has its full scale at
            2^31, as 24-bit files are read, uint8 around 128.

    Raises:
        ValueError: the type or the shape is none of samples.
    """
    if isinstance(audio, array):
        values = np.asarray(audio)
    elif isinstance(audio, list | tuple):
        values = _listed(audio)
    elif isinstance(audio, SupportsArray):
        values = _read(audio)
    else:
        return None
    if values.ndim not in (1, 2):
        raise ValueError(f"samples must be [samples], [samples, channels] or [channels, samples], not {_shape(values)}")
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
