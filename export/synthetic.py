"""Speech-like signals, for verifying graphs where a user has no recordings: nothing else is measured on them."""

import numpy as np
import scipy
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE

_FORMANTS_HZ = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
"""First three formants of five vowels (Peterson and Barney, JASA 1952, men)."""

_BANDWIDTHS_HZ = (80.0, 100.0, 150.0)
_SYLLABLE_SECONDS = 0.22
SECONDS = 3.2


def synthetic_voice(seed: int) -> NDArray[np.float32]:
    """Return a voice that says vowels: pulses of a moving pitch through formants, float32 [samples] at 16 kHz.

    Args:
        seed: chooses pitch, length of the vocal tract and vowels; the same on every machine.
    """
    rng = np.random.default_rng(seed)
    count = round(SECONDS * SAMPLE_RATE)
    times = np.arange(count) / SAMPLE_RATE
    pitch = rng.uniform(85, 230) * (1 + 0.08 * np.sin(2 * np.pi * rng.uniform(0.4, 1.2) * times))
    phase = np.cumsum(pitch) / SAMPLE_RATE
    source = np.diff(np.floor(phase), prepend=0.0) + 0.03 * rng.normal(size=count)
    tract, samples = rng.uniform(0.9, 1.25), np.zeros(count)
    step = round(_SYLLABLE_SECONDS * SAMPLE_RATE)
    for start in range(0, count, step):
        piece = source[start : start + step]
        for hertz, width in zip(_FORMANTS_HZ[rng.integers(len(_FORMANTS_HZ))], _BANDWIDTHS_HZ, strict=True):
            radius = np.exp(-np.pi * width / SAMPLE_RATE)
            turn = 2 * np.pi * hertz * tract / SAMPLE_RATE
            piece = scipy.signal.lfilter([1 - radius], [1.0, -2 * radius * np.cos(turn), radius**2], piece)
        samples[start : start + step] = piece * np.hanning(len(piece) + 2)[1:-1]
    level: NDArray[np.float32] = (0.2 * samples / np.abs(samples).max() + 1e-4 * rng.normal(size=count)).astype(
        np.float32
    )
    return level
