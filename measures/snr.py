"""How far speech stands above what else is in a recording, blindly: there is no clean speech to compare with.

Two published ideas, joined by a fit. Between and within words speech makes room for the noise, so that the distribution
of the short-time energy tells the noise's level from the speech's: its low quantiles against its high ones (Hirsch and
Ehrlicher, "Noise estimation techniques for robust speech recognition", ICASSP 1995; the quantiles in place of their
histogram: Stahl, Fischer and Bippus, ICASSP 2000). And voices are periodic where most noises are not: the share of the
energy that repeats is a ratio of harmonics to noise (Boersma 1993, see `measures/frames.py`). The first is misled by
noise that comes and goes, the second by hum and music; how fast the energy changes tells which to believe. A quadratic
function of eight such features, fitted to mixtures of known ratio, gives decibels: its coefficients are in `snr.json`,
`python -m benchmarks.snr --fit` makes them, and `python -m benchmarks.snr` says how well it does on other speakers and
noises, beside WADA-SNR and others. docs/decisions/0008-sound-measures.md has the figures.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.frames import Frames

QUANTILES = (0.1, 0.3, 0.5, 0.75, 0.9)
LOWEST_DB, HIGHEST_DB = -10.0, 30.0
"""The range of estimates; the fit has seen ratios from -5 to 25 dB."""
SILENT = 1e-10
"""Mean square, -100 dBFS, up to which there is nothing to tell apart."""
OUTLYING = 2.5
"""Standard deviations to which a feature is bounded, as a quadratic function must not be trusted far out."""

Features = NDArray[np.float64]


class Quadratic(NamedTuple):
    """A quadratic function of k features, standardised and bounded."""

    mean: Features
    deviation: Features
    constant: float
    linear: Features
    products: Features
    """[k, k]."""

    def scaled(self, figures: Features) -> Features:
        """Features [..., k] in standard deviations from their mean, bounded."""
        return np.minimum(np.maximum((figures - self.mean) / self.deviation, -OUTLYING), OUTLYING)

    def at(self, figures: Features) -> float:
        """Its value for features [k], in decibels."""
        scaled = self.scaled(figures)
        return float(self.constant + scaled @ (self.linear + self.products @ scaled))


def snr_db(frames: Frames) -> float:
    """Estimate the signal-to-noise ratio: 10 log10 of the energy of speech over that of all else, over the whole time.

    Returns:
        From -10 to 30 dB; NaN in silence.
    """
    if not frames.energy.sum() > SILENT * len(frames.energy):
        return math.nan
    return min(max(FITTED.at(features(frames)), LOWEST_DB), HIGHEST_DB)


def features(frames: Frames) -> Features:
    """The eight figures that the estimate rests on, [8]; none depends on the level of the recording.

    Quantiles of the frames' energies over their mean, the harmonics' share of all energy and of that below 1.5 kHz as
    ratios to the rest, all in decibels; and how much the logarithm of the energy changes from frame to frame.
    """
    energy = frames.energy
    total = float(energy.sum())
    mean = total / len(energy)
    ordered = np.sort(energy)[[round(share * (len(energy) - 1)) for share in QUANTILES]].tolist()
    repeating = float(energy @ frames.periodic), float(energy @ frames.voiced)
    levels = np.log(energy + np.float32(1e-9 * mean + 1e-30))
    change = float(np.abs(levels[1:] - levels[:-1]).sum()) / max(len(levels) - 1, 1)
    return np.array(
        [
            *(_decibels(value / mean) for value in ordered),
            *(_ratio_db(value / total) for value in repeating),
            math.log(change + 1e-3),
        ]
    )


def _decibels(power: float) -> float:
    return 10 * math.log10(min(max(power, 1e-6), 10.0))


def _ratio_db(share: float) -> float:
    """Harmonics over noise from the harmonics' share."""
    return 10 * math.log10(max(share, 1e-4) / max(1 - share, 1e-3))


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
