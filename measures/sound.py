"""What can be told of a recording from its samples alone, at a cost that no request notices.

All of it is blind: nobody knows what was said, or what the noise was. `measures/snr.py` says how far the estimate of
the signal-to-noise ratio can be trusted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from measures.snr import HIGHEST_DB, snr_db

RATE = 16_000
FRAME = 256
LEAST_SAMPLES = 400
SILENT_DBFS = -100.0
"""The level of silence, which has none; anything quieter counts as this."""


@dataclass(frozen=True)
class Sound:
    """The sound of one window, or of all windows of one recording."""

    seconds: float
    """Duration."""
    snr_db: float
    """Speech over all else, energies over the whole, in decibels; NaN where it cannot be told (silence)."""
    speech_share: float
    """Share of the time in which somebody speaks, 0 to 1."""
    clipped_share: float
    """Share of the samples that were cut off at the top or bottom, 0 to 1."""
    level_dbfs: float
    """Root mean square after removal of a constant offset, in decibels of full scale (a square wave of height 1)."""
    bandwidth_hz: float
    """Frequency up to which there is sound; 0 in silence."""


def hear(samples: NDArray[np.float32]) -> Sound:
    """Measure one window of sound, [n] at 16 kHz in [-1, 1], finite, n >= 400.

    Never raises on such input: silence has an SNR of NaN, a level of -100 dBFS, and a bandwidth of 0.
    """
    centred = samples - samples.mean()
    level = _decibels(float(centred @ centred) / len(centred))
    if level <= SILENT_DBFS:
        return Sound(len(samples) / RATE, math.nan, 0.0, 0.0, SILENT_DBFS, 0.0)
    power = _spectrogram(centred)
    return Sound(
        seconds=len(samples) / RATE,
        snr_db=snr_db(power),
        speech_share=_speech_share(power),
        clipped_share=_clipped_share(samples),
        level_dbfs=level,
        bandwidth_hz=_bandwidth_hz(power),
    )


def together(sounds: Sequence[Sound]) -> Sound:
    """Join the measures of the windows of one recording, as if it had been measured whole.

    Energies add up, shares are means weighted by duration, the bandwidth is the widest. Durations are summed: where
    windows overlap, what they share counts twice.

    Raises:
        ValueError: if there is no window.
    """
    if not sounds:
        raise ValueError("no window to join")
    seconds = sum(sound.seconds for sound in sounds)
    energy = speech = noise = 0.0
    for sound in sounds:
        own = sound.seconds * 10 ** (sound.level_dbfs / 10) if sound.level_dbfs > SILENT_DBFS else 0.0
        energy += own
        if not math.isnan(sound.snr_db):
            ratio = 10 ** (sound.snr_db / 10)
            speech += own * ratio / (1 + ratio)
            noise += own / (1 + ratio)
    return Sound(
        seconds=seconds,
        snr_db=min(_decibels(speech / noise), HIGHEST_DB) if noise > 0 else math.nan,
        speech_share=sum(sound.speech_share * sound.seconds for sound in sounds) / seconds,
        clipped_share=sum(sound.clipped_share * sound.seconds for sound in sounds) / seconds,
        level_dbfs=max(_decibels(energy / seconds), SILENT_DBFS),
        bandwidth_hz=max(sound.bandwidth_hz for sound in sounds),
    )


def _decibels(power: float) -> float:
    return 10 * math.log10(max(power, 1e-30))


def _spectrogram(centred: NDArray[np.float32]) -> NDArray[np.floating]:
    """Power [frames, bins] of frames of 16 ms side by side."""
    frames = centred[: len(centred) // FRAME * FRAME].reshape(-1, FRAME)
    spectrum = np.fft.rfft(frames * np.hanning(FRAME).astype(np.float32))
    return spectrum.real**2 + spectrum.imag**2


def _speech_share(power: NDArray[np.floating]) -> float:
    voice = power[:, 2:56].sum(axis=1)
    return float((voice > 4 * np.quantile(voice, 0.1)).mean())


def _clipped_share(samples: NDArray[np.float32]) -> float:
    share = 0.0
    for side in (samples, -samples):
        top = side >= side.max() - 1.5 / 32768
        runs = top[:-2] & top[1:-1] & top[2:]
        if runs.any():
            share += float(top.mean())
    return share


def _bandwidth_hz(power: NDArray[np.floating]) -> float:
    mean = power.mean(axis=0)
    return float(np.flatnonzero(mean >= mean.max() * 1e-6)[-1] * RATE / FRAME)
