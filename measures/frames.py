"""Short-time energy and periodicity of sound: what the measures of speech and noise are made from.

Every fourth sample is taken, unfiltered: what lies above 2 kHz folds down, which keeps its energy and costs nothing,
and a voice's harmonics below 1.5 kHz stay in their places. One frame of 32 ms begins every 48 ms.

Periodicity is Boersma's ("Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise ratio of
a sampled sound", Proc. Institute of Phonetic Sciences, Amsterdam, 17, 1993): the largest autocorrelation at the lags of
voices over that at lag 0, divided by the taper's own. The autocorrelation of a few lags is one product of the power
spectrum with a table of cosines, cheaper than a transform back.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
"""Of all samples that come in here, in hertz."""
STEP, FRAME = 4, 128
STRIDE = 768
"""Samples from one frame to the next, of which a frame takes every fourth of the first 512."""
AT_ONCE = 96
"""Frames at a time: more fall out of the processor's cache, and make BLAS wake its threads for so little."""
VOICE_HZ = (70, 400)
LAGS = 40
HARMONICS_HZ = (60, 1500)

Array = NDArray[np.float32]


class Frames(NamedTuple):
    """One number for each frame, float32 [frames]."""

    energy: Array
    """Mean square above 50 Hz, so without a constant offset."""
    periodic: Array
    """Share of that energy which repeats with a voice's period, 0 to 1."""
    voiced: Array
    """The same share of the energy from 60 Hz to 1.5 kHz alone."""


def frames(samples: Array) -> Frames:
    """Analyse samples [n] at 16 kHz: n // 768 frames, or one, padded, of fewer; what is left over does not count."""
    if len(samples) < STRIDE:
        samples = np.pad(samples, (0, STRIDE - len(samples)))
    few = samples[: len(samples) // STRIDE * STRIDE].reshape(-1, STRIDE)[:, : STEP * FRAME : STEP]
    parts = [_measured(few[start : start + AT_ONCE]) for start in range(0, len(few), AT_ONCE)]
    return parts[0] if len(parts) == 1 else Frames(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _measured(few: Array) -> Frames:
    spectrum = np.fft.rfft(few * _TAPER)
    power = np.asarray(spectrum.real**2 + spectrum.imag**2, np.float32)
    products = _TABLE @ power.T
    peak = products[:LAGS].max(axis=0)
    voiced, periodic = np.minimum(np.maximum(peak, _NOTHING) / np.maximum(products[LAGS:], _LEAST), _WHOLE)
    return Frames(products[LAGS + 1], periodic, voiced)


def _table() -> Array:
    """[lags + 2, bins]: autocorrelation at each lag, energy in the band of harmonics, energy."""
    bins = np.arange(FRAME // 2 + 1)
    hertz = bins * RATE / STEP / FRAME
    twice = np.where(bins == FRAME // 2, 1.0, 2.0)
    harmonic = np.where((hertz >= HARMONICS_HZ[0]) & (hertz <= HARMONICS_HZ[1]), twice, 0)
    lags = RATE / STEP / np.geomspace(*VOICE_HZ, LAGS)
    taper = np.correlate(_TAPER, _TAPER, "full")[FRAME - 1 :] / (_TAPER @ _TAPER)
    cosines = np.cos(2 * np.pi * np.outer(bins, lags) / FRAME) / np.interp(lags, np.arange(FRAME), taper)
    # The periodic taper leaks a constant into the first two bins alone.
    columns = [harmonic[:, None] * cosines, harmonic[:, None], np.where(bins >= 2, twice, 0)[:, None]]
    return np.ascontiguousarray((np.concatenate(columns, axis=1) / (FRAME * float(_TAPER @ _TAPER))).T, np.float32)


_TAPER = np.hanning(FRAME + 1)[:-1].astype(np.float32)
_TABLE = _table()
_NOTHING, _LEAST, _WHOLE = np.float32(0), np.float32(1e-30), np.float32(1)
