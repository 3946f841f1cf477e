"""Blind estimate of the signal-to-noise ratio of speech, from short-time energy and periodicity.

Every fourth sample is taken, unfiltered: what lies above 2 kHz folds down, which keeps its energy, and a voice's
harmonics below 1.5 kHz stay in place. One frame of 32 ms starts every 48 ms.

Periodicity: the largest autocorrelation at a voice's lags over that at lag 0, divided by the window's own
autocorrelation (Boersma, "Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise ratio of
a sampled sound", Proc. Institute of Phonetic Sciences, Amsterdam, 17, 1993). The autocorrelation at a few lags is one
product of the power spectrum with a table of cosines, cheaper than an inverse transform.

The estimate combines two published ideas. Speech pauses let the noise through, so low quantiles of the short-time
energy show the noise and high ones the speech (Hirsch and Ehrlicher, "Noise estimation techniques for robust speech
recognition", ICASSP 1995; quantiles: Stahl, Fischer and Bippus, ICASSP 2000). And voices are periodic, most noises are
not. The first fails in noise that comes and goes, the second in hum and music; the rate of change of the energy tells
which to trust. A quadratic function of eight such features, fitted to mixtures of known ratio, gives decibels.
`python -m benchmarks.snr --fit` writes its coefficients, `snr.json`; `python -m benchmarks.snr` compares the estimate
with WADA-SNR and others on other speakers and noises (figures: docs/decisions/0008-sound-measures.md).
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
"""Sample rate of all input, in hertz."""
STEP, FRAME = 4, 128
STRIDE = 768
"""Samples from one frame to the next; a frame takes every fourth of the first 512."""
AT_ONCE = 96
"""Frames per matrix product: more leave the processor's cache, and make BLAS wake its threads."""
VOICE_HZ = (70, 400)
LAGS = 40
HARMONICS_HZ = (60, 1500)

QUANTILES = (0.1, 0.3, 0.5, 0.75, 0.9)
LOWEST_DB, HIGHEST_DB = -10.0, 30.0
"""Range of estimates; the fit has seen ratios from -5 to 25 dB."""
SILENT = 1e-10
"""Mean square (-100 dBFS) up to which audio counts as silent."""
OUTLYING = 2.5
"""Standard deviations to which features are clipped, as a quadratic function extrapolates badly."""

Array = NDArray[np.float32]
Features = NDArray[np.float64]


class Frames(NamedTuple):
    """Measures of each frame, float32 [frames]."""

    energy: Array
    """Mean square above 50 Hz, so without a constant offset."""
    periodic: Array
    """Share of that energy that is periodic at a voice's pitch, 0 to 1."""
    voiced: Array
    """The same share of the energy from 60 Hz to 1.5 kHz."""


def analyse(samples: Array) -> Frames:
    """Return the n // 768 frames of samples, float32 [n] at 16 kHz; one padded frame if n < 768."""
    if len(samples) < STRIDE:
        samples = np.pad(samples, (0, STRIDE - len(samples)))
    every_fourth = samples[: len(samples) // STRIDE * STRIDE].reshape(-1, STRIDE)[:, : STEP * FRAME : STEP]
    parts = [_analyse_batch(every_fourth[start : start + AT_ONCE]) for start in range(0, len(every_fourth), AT_ONCE)]
    return parts[0] if len(parts) == 1 else Frames(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _analyse_batch(frames: Array) -> Frames:
    spectrum = np.fft.rfft(frames * _TAPER)
    power = np.asarray(spectrum.real**2 + spectrum.imag**2, np.float32)
    products = _TABLE @ power.T
    peak = products[:LAGS].max(axis=0)
    voiced, periodic = np.minimum(np.maximum(peak, _NOTHING) / np.maximum(products[LAGS:], _LEAST), _WHOLE)
    return Frames(products[LAGS + 1], periodic, voiced)


class Quadratic(NamedTuple):
    """A quadratic function of k standardised, clipped features."""

    mean: Features
    deviation: Features
    constant: float
    linear: Features
    products: Features
    """[k, k]."""

    def standardised(self, values: Features) -> Features:
        """Return features, float64 [..., k], in standard deviations from their mean, clipped."""
        return np.minimum(np.maximum((values - self.mean) / self.deviation, -OUTLYING), OUTLYING)

    def value(self, values: Features) -> float:
        """Return the function's value for features, float64 [k], in decibels."""
        scaled = self.standardised(values)
        return float(self.constant + scaled @ (self.linear + self.products @ scaled))


def snr_db(frames: Frames) -> float:
    """Estimate the SNR: 10 log10 of the energy of speech over the energy of everything else.

    Returns:
        Decibels from -10 to 30; NaN in silence.
    """
    if not frames.energy.sum() > SILENT * len(frames.energy):
        return math.nan
    return min(max(FITTED.value(features(frames)), LOWEST_DB), HIGHEST_DB)


def features(frames: Frames) -> Features:
    """Return the features of the estimate, float64 [8]; none depends on the recording's level.

    Five quantiles of the frame energies over their mean, and the harmonics-to-noise ratios of all energy and of the
    energy below 1.5 kHz, in decibels; and the logarithm of the mean change of log energy from frame to frame.
    """
    energy = frames.energy
    total = float(energy.sum())
    mean = total / len(energy)
    ordered = np.sort(energy)[[round(share * (len(energy) - 1)) for share in QUANTILES]].tolist()
    periodic = float(energy @ frames.periodic), float(energy @ frames.voiced)
    levels = np.log(energy + np.float32(1e-9 * mean + 1e-30))
    change = float(np.abs(levels[1:] - levels[:-1]).sum()) / max(len(levels) - 1, 1)
    return np.array(
        [
            *(_decibels(value / mean) for value in ordered),
            *(_ratio_db(value / total) for value in periodic),
            math.log(change + 1e-3),
        ]
    )


def _decibels(power: float) -> float:
    return 10 * math.log10(min(max(power, 1e-6), 10.0))


def _ratio_db(share: float) -> float:
    """Return the harmonics-to-noise ratio in decibels for a share of harmonics, 0 to 1."""
    return 10 * math.log10(max(share, 1e-4) / max(1 - share, 1e-3))


def _table() -> Array:
    """Return float32 [lags + 2, bins]; times a power spectrum: autocorrelation by lag, energy of harmonics, energy."""
    bins = np.arange(FRAME // 2 + 1)
    hertz = bins * RATE / STEP / FRAME
    twice = np.where(bins == FRAME // 2, 1.0, 2.0)
    harmonic = np.where((hertz >= HARMONICS_HZ[0]) & (hertz <= HARMONICS_HZ[1]), twice, 0)
    lags = RATE / STEP / np.geomspace(*VOICE_HZ, LAGS)
    taper = np.correlate(_TAPER, _TAPER, "full")[FRAME - 1 :] / (_TAPER @ _TAPER)
    cosines = np.cos(2 * np.pi * np.outer(bins, lags) / FRAME) / np.interp(lags, np.arange(FRAME), taper)
    # The periodic Hann window leaks a constant offset into the first two bins only.
    columns = [harmonic[:, None] * cosines, harmonic[:, None], np.where(bins >= 2, twice, 0)[:, None]]
    return np.ascontiguousarray((np.concatenate(columns, axis=1) / (FRAME * float(_TAPER @ _TAPER))).T, np.float32)


_TAPER = np.hanning(FRAME + 1)[:-1].astype(np.float32)
_TABLE = _table()
_NOTHING, _LEAST, _WHOLE = np.float32(0), np.float32(1e-30), np.float32(1)


def _fitted() -> Quadratic:
    stored = json.loads(Path(__file__).with_name("snr.json").read_text("utf-8"))
    return Quadratic(
        mean=np.array(stored["mean"]),
        deviation=np.array(stored["deviation"]),
        constant=float(stored["constant"]),
        linear=np.array(stored["linear"]),
        products=np.array(stored["products"]),
    )


FITTED = _fitted()
