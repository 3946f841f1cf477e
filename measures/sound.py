"""What can be told of a recording from its samples alone, at a cost that no request notices.

All of it is blind: nobody knows what was said, or what the noise was. `measures/snr.py` says how far the estimate of
the signal-to-noise ratio can be trusted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.frames import RATE, STRIDE, Array, Frames, frames
from speakerlens.measures.snr import HIGHEST_DB, LOWEST_DB, snr_db

SILENT_DBFS = -100.0
"""The level of silence, which has none; anything quieter counts as this."""

VOICED, VOICED_DBFS, ABOVE_FLOOR, FLOOR_SHARE = 0.6, -60.0, 2.0, 0.1
REACH = 2
"""Frames, of 48 ms, around a voiced one in which what is loud enough is its consonant."""

STEP_16_BIT = 2.0**-15
FLAT = 1.5 * STEP_16_BIT
FLAT_RUN = 3
FULL_SCALE = 0.999
LEAST_CLIPPED = 0.02
"""Height below which a sound's tops are flat from quantisation alone."""

SHORT = 128
LOOKED_AT = 10
AUDIBLE = 1e-6
"""Power of a band against that of the strongest, -60 dB, from which it counts as in use."""

_TAPER = np.blackman(SHORT + 1)[:-1].astype(np.float32)
_LEAST_POWER = 20 * STEP_16_BIT**2 / 12 * float(_TAPER @ _TAPER)
"""Of a band of two bins: 10 dB above the quantisation of 16 bits."""


@dataclass(frozen=True)
class Sound:
    """The sound of one window, or of all windows of one recording."""

    seconds: float
    """Duration."""
    snr_db: float
    """Speech over all else, energies over the whole, in decibels; NaN where it cannot be told (silence)."""
    speech_share: float
    """Share of the time in which somebody speaks, 0 to 1: voices, as their periodicity tells, and what else has it."""
    clipped_share: float
    """Share of the samples that were cut off at the top or bottom, 0 to 1."""
    level_dbfs: float
    """Root mean square of what lies above 50 Hz, so without a constant offset, in decibels of full scale (a square wave
    of height 1); from frames that cover two thirds of the time, so within some tenths of a decibel."""
    bandwidth_hz: float
    """Frequency up to which there is sound; 0 in silence."""


def hear(samples: NDArray[np.float32]) -> Sound:
    """Measure one window of sound, [n] at 16 kHz in [-1, 1], finite, n >= 400.

    Never raises on such input: silence has an SNR of NaN, a level of -100 dBFS, and a bandwidth of 0.
    """
    seconds = len(samples) / RATE
    analysed = frames(samples)
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
        snr_db=min(max(_decibels(speech / noise), LOWEST_DB), HIGHEST_DB) if noise > 0 else math.nan,
        speech_share=sum(sound.speech_share * sound.seconds for sound in sounds) / seconds,
        clipped_share=sum(sound.clipped_share * sound.seconds for sound in sounds) / seconds,
        level_dbfs=max(_decibels(energy / seconds), SILENT_DBFS),
        bandwidth_hz=max(sound.bandwidth_hz for sound in sounds),
    )


def _decibels(power: float) -> float:
    return 10 * math.log10(max(power, 1e-30))


def _speech_share(analysed: Frames) -> float:
    """Voiced frames that stand out of the quietest tenth, and what is loud close by: consonants."""
    energy = analysed.energy
    floor = float(np.sort(energy)[int(FLOOR_SHARE * len(energy))])
    loud = energy > max(10 ** (VOICED_DBFS / 10), ABOVE_FLOOR * floor)
    near = loud & (analysed.voiced > VOICED)
    for _ in range(REACH):
        near[1:] |= near[:-1].copy()
        near[:-1] |= near[1:].copy()
    return float(np.count_nonzero(near & loud)) / len(energy)


def clipped_share(samples: Array) -> float:
    """Share of samples [n], at any rate, that were cut off at the top or the bottom.

    A side is clipped where three samples or more in a row lie within 1.5 steps of 16 bits of its extreme, and fall out
    of that range suddenly, as a wave that is merely round at its top does not; then all samples that near to the
    extreme count. Resampling takes the flat tops away: ask before it.
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
    """Whether the first sample at the extreme has a neighbour as high: saves most sounds the search."""
    around = samples[max(extreme - 1, 0) : extreme + 2].tolist()
    top = float(samples[extreme])
    return [abs(sample - top) <= FLAT for sample in around].count(True) > 1


def _at_ceiling(samples: Array, extreme: NDArray[np.bool_]) -> int:
    """How many samples are at the extreme, if it is a ceiling."""
    edges = np.flatnonzero(np.diff(extreme.view(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    long = ends - starts >= FLAT_RUN
    starts, ends = starts[long], ends[long]
    inside = samples[starts]
    falls = np.abs(inside - samples[np.maximum(starts - 1, 0)]), np.abs(inside - samples[ends - len(samples)])
    sharp = np.maximum(*falls) > 4 * FLAT
    return int(np.count_nonzero(extreme)) if sharp.any() else 0


def _bandwidth_hz(samples: Array, energy: Array) -> float:
    """The highest band of 250 Hz that any of ten frames uses, frames spread over the louder half.

    The strongest frames are vowels, which may have no treble: consonants are among the others.
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
    """[samples, bands x 4]: the tapered cosines and sines of two bins for each band, from bin 3 on.

    The taper leaks a constant offset into the first three bins, and hardly further. For ten short frames a product is
    cheaper than a fast transform with all its calls.
    """
    bins = np.arange(3, SHORT // 2 + 1)
    angles = 2 * np.pi * np.outer(np.arange(SHORT), bins) / SHORT
    waves = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(SHORT, -1)
    return np.ascontiguousarray(_TAPER[:, None] * waves, np.float32)


_FOURIER = _fourier()
