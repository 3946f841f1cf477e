"""Measures of a recording from its samples alone: SNR, speech share, clipping, level and bandwidth.

All are blind estimates, without clean speech to compare with, and cheap enough for every request.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.snr import HIGHEST_DB, LOWEST_DB, RATE, STRIDE, Array, Frames, analyse, snr_db

SILENT_DBFS = -100.0
"""Level reported for silence, and for anything quieter."""

VOICED, VOICED_DBFS, ABOVE_FLOOR, FLOOR_SHARE = 0.6, -60.0, 2.0, 0.1
REACH = 2
"""Frames (of 48 ms) around a voiced one in which loud sound counts as a consonant."""

STEP_16_BIT = 2.0**-15
FLAT = 1.5 * STEP_16_BIT
FLAT_RUN = 3
FULL_SCALE = 0.999
LEAST_CLIPPED = 0.02
"""Amplitude below which quantisation alone makes flat tops."""

SHORT = 128
LOOKED_AT = 10
AUDIBLE = 1e-6
"""Power of a band over that of the strongest (-60 dB) from which it counts as used."""

_TAPER = np.blackman(SHORT + 1)[:-1].astype(np.float32)
_LEAST_POWER = 20 * STEP_16_BIT**2 / 12 * float(_TAPER @ _TAPER)
"""Of a band of two bins: 10 dB above 16-bit quantisation noise."""


@dataclass(frozen=True)
class Sound:
    """Measures of one window, or of all windows of one recording."""

    seconds: float
    """Duration in seconds."""
    snr_db: float
    """Energy of speech over that of everything else, in decibels; NaN in silence."""
    speech_share: float
    """Share of the time with speech, 0 to 1; found by periodicity, so other periodic sound counts too."""
    clipped_share: float
    """Share of the samples that are clipped, 0 to 1."""
    level_dbfs: float
    """RMS above 50 Hz (without a constant offset) in decibels of full scale, where a square wave of amplitude 1 is 0.
    The frames cover two thirds of the time, so it is exact to some tenths of a decibel."""
    bandwidth_hz: float
    """Highest frequency in use, in hertz; 0 in silence."""


def measure_sound(samples: NDArray[np.float32]) -> Sound:
    """Measure one window, float32 [n] at 16 kHz in [-1, 1], finite, n >= 400.

    Returns:
        For silence: SNR NaN, level -100 dBFS, bandwidth 0.
    """
    seconds = len(samples) / RATE
    analysed = analyse(samples)
    level = _decibels(float(analysed.energy.sum()) / len(analysed.energy))
    if level <= SILENT_DBFS:
        return Sound(seconds, math.nan, 0.0, 0.0, SILENT_DBFS, 0.0)
    return Sound(
        seconds=seconds,
        snr_db=snr_db(analysed),
        speech_share=_speech_share(analysed),
        clipped_share=clipped_share(samples),
        level_dbfs=level,
        bandwidth_hz=_bandwidth_hz(samples, analysed.energy),
    )


def join(sounds: Sequence[Sound]) -> Sound:
    """Combine the measures of one recording's windows into those of the whole.

    Energies add up, shares are means weighted by duration, the bandwidth is the largest. Durations add up, so an
    overlap counts twice.

    Raises:
        ValueError: there is no window.
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
        snr_db=min(max(_decibels(speech / noise), LOWEST_DB), HIGHEST_DB) if noise > 0 else math.nan,
        speech_share=sum(sound.speech_share * sound.seconds for sound in sounds) / seconds,
        clipped_share=sum(sound.clipped_share * sound.seconds for sound in sounds) / seconds,
        level_dbfs=max(_decibels(energy / seconds), SILENT_DBFS),
        bandwidth_hz=max(sound.bandwidth_hz for sound in sounds),
    )


def _decibels(power: float) -> float:
    return 10 * math.log10(max(power, 1e-30))


def _speech_share(analysed: Frames) -> float:
    """Return the share of frames that are voiced and above the noise floor, or loud and next to one that is."""
    energy = analysed.energy
    floor = float(np.sort(energy)[int(FLOOR_SHARE * len(energy))])
    loud = energy > max(10 ** (VOICED_DBFS / 10), ABOVE_FLOOR * floor)
    near = loud & (analysed.voiced > VOICED)
    for _ in range(REACH):
        near[1:] |= near[:-1].copy()
        near[:-1] |= near[1:].copy()
    return float(np.count_nonzero(near & loud)) / len(energy)


def clipped_share(samples: Array) -> float:
    """Return the share of samples, float32 [n] at any rate, that are clipped.

    A side is clipped if at least three samples in a row lie within 1.5 steps of 16 bits of its extreme and the wave
    leaves that range abruptly, unlike a round top; then all samples within that range count. Resampling removes the
    flat tops, so measure before it.
    """
    highest, lowest = int(samples.argmax()), int(samples.argmin())
    high, low = float(samples[highest]), float(samples[lowest])
    if (high - low) / 2 < LEAST_CLIPPED:
        return 0.0
    count = 0
    if high >= FULL_SCALE or _is_flat(samples, highest):
        count += _at_ceiling(samples, samples >= high - FLAT)
    if low <= -FULL_SCALE or _is_flat(samples, lowest):
        count += _at_ceiling(samples, samples <= low + FLAT)
    return count / len(samples)


def _is_flat(samples: Array, extreme: int) -> bool:
    """Return whether the first sample at the extreme has an equal neighbour; most audio needs no further search."""
    around = samples[max(extreme - 1, 0) : extreme + 2].tolist()
    top = float(samples[extreme])
    return [abs(sample - top) <= FLAT for sample in around].count(True) > 1


def _at_ceiling(samples: Array, extreme: NDArray[np.bool_]) -> int:
    """Return how many samples are at the extreme if it is a clipping level, else 0."""
    edges = np.flatnonzero(np.diff(extreme.view(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    long = ends - starts >= FLAT_RUN
    starts, ends = starts[long], ends[long]
    inside = samples[starts]
    falls = np.abs(inside - samples[np.maximum(starts - 1, 0)]), np.abs(inside - samples[ends - len(samples)])
    sharp = np.maximum(*falls) > 4 * FLAT
    return int(np.count_nonzero(extreme)) if sharp.any() else 0


def _bandwidth_hz(samples: Array, energy: Array) -> float:
    """Return the upper end of the highest band of 250 Hz in use, in hertz, from ten frames of the louder half.

    They are spread over that half: the loudest frames are vowels with little treble, consonants are quieter.
    """
    if len(samples) < STRIDE:
        samples = np.pad(samples, (0, STRIDE - len(samples)))
    ranked = np.argsort(energy)[len(energy) // 2 :]
    chosen = ranked[:: -(-len(ranked) // LOOKED_AT)]
    pieces = samples[: len(energy) * STRIDE].reshape(-1, STRIDE)[chosen, :SHORT]
    parts = pieces @ _FOURIER
    bands = (parts * parts).reshape(len(pieces), -1, 4).sum(axis=2).max(axis=0)
    used = np.flatnonzero(bands >= max(AUDIBLE * float(bands.max()), _LEAST_POWER))
    return (4.0 + 2 * float(used[-1])) * RATE / SHORT if len(used) else 0.0


def _fourier() -> Array:
    """Return float32 [samples, bands x 4]: tapered cosines and sines of two bins per band, from bin 3 on.

    The taper leaks a constant offset into the first three bins. For ten short frames a matrix product is cheaper than
    an FFT.
    """
    bins = np.arange(3, SHORT // 2 + 1)
    angles = 2 * np.pi * np.outer(np.arange(SHORT), bins) / SHORT
    waves = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(SHORT, -1)
    return np.ascontiguousarray(_TAPER[:, None] * waves, np.float32)


_FOURIER = _fourier()
