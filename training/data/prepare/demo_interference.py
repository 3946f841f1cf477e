"""Synthetic interference for the demo: noises and tonal music, without recordings.

Every function takes the random generator and returns 16 kHz samples [N]; `make_noise` and `make_music` scale their peak
to 0.7.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE

_Waveform = NDArray[np.float32]
_Array = NDArray[np.float64]

_PEAK = 0.7
_PERIOD = 4096


def make_noise(kind: str, seconds: float, rng: np.random.Generator) -> _Waveform:
    """Return a noise of a kind in `NOISES` with random parameters, float32 [16000 x seconds]."""
    return _at_peak(NOISES[kind](round(seconds * SAMPLE_RATE), rng))


def make_music(seconds: float, rng: np.random.Generator) -> _Waveform:
    """Return tonal music, float32 [16000 x seconds]: a repeated progression of four chords, a bass and a melody.

    Key, mode, tempo, notes, and the overtones and envelopes of the instruments are random.
    """
    samples = round(seconds * SAMPLE_RATE)
    beat = 60.0 / rng.uniform(80, 150)
    scale = np.array([0, 2, 4, 5, 7, 9, 11] if rng.random() < 0.5 else [0, 2, 3, 5, 7, 8, 10])
    tonic = int(rng.integers(45, 57))  # MIDI note numbers: A2 to G#3
    chord_voice, bass_voice, melody_voice = (_Instrument(rng) for _ in range(3))
    progression = rng.permutation(6)[:4]
    music = np.zeros(samples)
    for bar, start in enumerate(np.arange(0.0, seconds, 4 * beat)):
        root = int(progression[bar % 4])
        for degree in (root, root + 2, root + 4):
            chord_voice.play(music, start, 4 * beat, _degree(scale, tonic, degree), 0.5)
        bass_voice.play(music, start, 2 * beat, _degree(scale, tonic - 12, root), 0.9)
        bass_voice.play(music, start + 2 * beat, 2 * beat, _degree(scale, tonic - 12, root + 4), 0.8)
    time, degree = 0.0, int(rng.integers(7, 14))
    while time < seconds:
        length = beat * float(rng.choice([0.5, 0.5, 1.0, 1.0, 2.0]))
        degree = int(np.clip(degree + rng.integers(-3, 4), 5, 18))
        if rng.random() < 0.85:
            melody_voice.play(music, time, length, _degree(scale, tonic, degree), 1.0)
        time += length
    return _at_peak(music)


class _Instrument:
    """Harmonics with attack and decay; the higher harmonics fade faster."""

    def __init__(self, rng: np.random.Generator) -> None:
        orders = np.arange(1, int(rng.integers(4, 7)))  # at most 6: the highest note's lie below 8 kHz
        strengths = orders ** -rng.uniform(0.8, 2.0) * rng.uniform(0.3, 1.0, len(orders))
        self._bright, self._dull = _period(strengths), _period(strengths / orders)
        self._attack, self._decay = rng.uniform(0.005, 0.08), rng.uniform(0.3, 2.0)
        self._vibrato = rng.uniform(0.0, 0.006)

    def play(self, music: _Array, start: float, seconds: float, note: float, loudness: float) -> None:
        """Add a note (MIDI number) to `music` [N] in place, cut at its end; `start` and `seconds` in seconds."""
        first = round(start * SAMPLE_RATE)
        length = min(round(seconds * SAMPLE_RATE), len(music) - first)
        if length <= 0:
            return
        time = np.arange(length) / SAMPLE_RATE
        frequency = 440.0 * 2 ** ((note - 69) / 12)
        cycles = frequency * (time + self._vibrato * np.sin(2 * np.pi * 5.5 * time) / (2 * np.pi * 5.5))
        fade = np.exp(-time / self._decay)
        envelope = np.minimum(time / self._attack, 1) * fade
        envelope *= np.minimum((length - np.arange(length)) / (0.02 * SAMPLE_RATE), 1)
        tone = fade * _repeat(self._bright, cycles) + (1 - fade) * _repeat(self._dull, cycles)
        music[first : first + length] += loudness * envelope * tone


def _degree(scale: NDArray[np.int_], tonic: int, degree: int) -> int:
    return tonic + 12 * (degree // len(scale)) + int(scale[degree % len(scale)])


def _modulated(samples: int, rng: np.random.Generator) -> _Array:
    """Return noise with sinusoidal amplitude modulation of 0.3 to 12 Hz."""
    time = np.arange(samples) / SAMPLE_RATE
    depth, rate = rng.uniform(0.6, 1.0), np.exp(rng.uniform(np.log(0.3), np.log(12)))
    swell = 1 + depth * np.sin(2 * np.pi * rate * time + rng.uniform(0, 2 * np.pi))
    noise: _Array = coloured_noise(samples, rng.uniform(0, 6), rng) * swell
    return noise


def _clicks(samples: int, rng: np.random.Generator) -> _Array:
    """Return short ringing clicks at random times over faint noise."""
    clicks = 0.02 * coloured_noise(samples, 3, rng)
    for first in rng.integers(0, samples, int(rng.uniform(3, 12) * samples / SAMPLE_RATE)):
        length = min(samples - first, round(rng.uniform(0.005, 0.06) * SAMPLE_RATE))
        time = np.arange(length) / SAMPLE_RATE
        ring = np.sin(2 * np.pi * rng.uniform(300, 4000) * time) + 0.5 * rng.standard_normal(length)
        clicks[first : first + length] += rng.uniform(0.3, 1) * ring * np.exp(-6 * np.arange(length) / length)
    return clicks


def _rain(samples: int, rng: np.random.Generator) -> _Array:
    """Return dense decaying impulses, like rain."""
    drops = rng.standard_normal(samples) * (rng.random(samples) < rng.uniform(0.002, 0.02))
    decay = np.exp(-np.arange(160) / rng.uniform(8, 30)) * rng.standard_normal(160)
    return np.convolve(drops, decay)[:samples] + 0.02 * rng.standard_normal(samples)


def _hum(samples: int, rng: np.random.Generator) -> _Array:
    """Return mains hum (50 or 60 Hz and harmonics) over noise."""
    mains = float(rng.choice([50.0, 60.0])) * rng.uniform(0.99, 1.01)
    strengths = rng.random(24) / np.arange(1, 25) ** 0.7
    hum = _repeat(_period(strengths, rng.random(24)), mains * np.arange(samples) / SAMPLE_RATE)
    return hum + rng.uniform(0.05, 0.3) * coloured_noise(samples, 4, rng)


def _engine(samples: int, rng: np.random.Generator) -> _Array:
    """Return harmonics of a varying fundamental over low-frequency noise, like a motor."""
    time = np.arange(samples) / SAMPLE_RATE
    hertz = rng.uniform(25, 90) * (1 + 0.3 * np.sin(2 * np.pi * rng.uniform(0.05, 0.4) * time + rng.uniform(0, 6)))
    strengths = rng.random(30) / np.arange(1, 31)
    motor = _repeat(_period(strengths, rng.random(30)), np.cumsum(hertz) / SAMPLE_RATE)
    return motor + rng.uniform(0.2, 0.8) * coloured_noise(samples, 5, rng)


def _sirens(samples: int, rng: np.random.Generator) -> _Array:
    """Return tones that glide or jump between two pitches, like sirens."""
    time = np.arange(samples) / SAMPLE_RATE
    centre, width, rate = rng.uniform(500, 2500), rng.uniform(0.1, 0.5), rng.uniform(0.3, 8)
    glide = np.sin(2 * np.pi * rate * time)
    if rng.random() < 0.5:
        glide = np.sign(glide)
    tone = _repeat(_period(np.array([1.0, 0.3])), np.cumsum(centre * (1 + width * glide)) / SAMPLE_RATE)
    return tone + rng.uniform(0.03, 0.15) * coloured_noise(samples, 3, rng)


NOISES: dict[str, Callable[[int, np.random.Generator], _Array]] = {
    "white": lambda samples, rng: coloured_noise(samples, rng.uniform(-1, 1), rng),
    "pink": lambda samples, rng: coloured_noise(samples, rng.uniform(2, 4), rng),
    "brown": lambda samples, rng: coloured_noise(samples, rng.uniform(5, 7), rng),
    "modulated": _modulated,
    "clicks": _clicks,
    "rain": _rain,
    "hum": _hum,
    "engine": _engine,
    "sirens": _sirens,
}
"""Kinds of noise: functions of the number of samples and the generator; their level is arbitrary."""


def coloured_noise(samples: int, slope_db: float, rng: np.random.Generator) -> _Array:
    """Return Gaussian noise of unit power whose spectrum falls by `slope_db` per octave above 30 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    octaves = np.log2(np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 30.0) / 30.0)
    noise: _Array = np.fft.irfft(spectrum * 10 ** (-slope_db * octaves / 20), n=samples)
    noise /= noise.std()
    return noise


def _period(strengths: _Array, phases: _Array | None = None) -> _Array:
    """Return one period [4096] of a wave of unit power, from its harmonics' strengths and phases (in cycles)."""
    spectrum = np.zeros(_PERIOD // 2 + 1, dtype=np.complex128)
    cycles = np.zeros(len(strengths)) if phases is None else phases
    spectrum[1 : len(strengths) + 1] = strengths * np.exp(2j * np.pi * cycles)
    wave: _Array = np.fft.irfft(spectrum)
    wave /= wave.std()
    return wave


def _repeat(period: _Array, cycles: _Array) -> _Array:
    """Sample a periodic wave, given as one period [4096], at times [N] in cycles."""
    wave: _Array = period[(cycles * _PERIOD).astype(np.int64) % _PERIOD]
    return wave


def _at_peak(samples: _Array) -> _Waveform:
    return np.asarray(samples * (_PEAK / np.abs(samples).max()), dtype=np.float32)
