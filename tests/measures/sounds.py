"""Sounds whose figures are known by construction."""

import functools

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
Samples = NDArray[np.float32]


def sine(height: float, hertz: float = 440.0, seconds: float = 3.0) -> Samples:
    time = np.arange(int(seconds * RATE)) / RATE
    return (height * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def noise(seconds: float, seed: int, band: tuple[float, float] = (0, 8000)) -> Samples:
    """Gaussian noise of unit power that has nothing outside of a band."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(int(seconds * RATE)))
    hertz = np.fft.rfftfreq(int(seconds * RATE), 1 / RATE)
    made = np.fft.irfft(np.where((hertz >= band[0]) & (hertz <= band[1]), spectrum, 0), int(seconds * RATE))
    return np.asarray(made / made.std(), np.float32)


@functools.cache
def voice(seconds: float, seed: int, pauses: float = 0.3) -> tuple[Samples, float]:
    """What has a voice's statistics: syllables of harmonics under formants that move, hisses, pauses; of unit power.

    Returns:
        The samples and the share of the time in which there is any.
    """
    random = np.random.default_rng(seed)
    wanted = int(seconds * RATE)
    parts: list[NDArray[np.float64]] = []
    sounding = 0
    while sum(map(len, parts)) < wanted:
        if random.random() < pauses:
            parts.append(np.zeros(int(random.uniform(0.15, 0.4) * RATE)))
            continue
        part = _hiss(random) if random.random() < 0.25 else _syllable(random)
        sounding += max(min(len(part), wanted - sum(map(len, parts))), 0)
        parts.append(part)
    whole = np.concatenate(parts)[:wanted]
    return np.asarray(whole / whole.std(), np.float32), sounding / wanted


def _syllable(random: np.random.Generator) -> NDArray[np.float64]:
    samples = int(random.uniform(0.12, 0.35) * RATE)
    pitch = random.uniform(90, 240) * (1 + random.uniform(-0.15, 0.15) * np.linspace(0, 1, samples))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formants = random.uniform(300, 800), random.uniform(900, 2300), 2800
    made = np.zeros(samples)
    for harmonic in range(1, int(7000 / pitch.max())):
        hertz = harmonic * pitch.mean()
        weight = sum(10 ** (-place / 1500) / (1 + ((hertz - place) / 120) ** 2) for place in formants)
        made += (weight + 1e-3) * np.sin(harmonic * phase)
    return np.asarray(made / made.std() * np.hanning(samples) * 10 ** random.uniform(-0.4, 0.4), float)


def _hiss(random: np.random.Generator) -> NDArray[np.float64]:
    samples = int(random.uniform(0.06, 0.12) * RATE)
    return np.diff(random.standard_normal(samples + 1)) * np.hanning(samples) * 0.1


def mixed(speech: Samples, interference: Samples, snr_db: float) -> Samples:
    """The sum at a ratio of the energies, of unit power."""
    gain = np.linalg.norm(speech) / np.linalg.norm(interference) * 10 ** (-snr_db / 20)
    whole = speech + gain * interference
    return np.asarray(whole / whole.std(), np.float32)


def reference_sounds() -> dict[str, Samples]:
    """Return audio whose measures the tests pin: a change would make the baselines of all exported bundles invalid."""
    level, silence = np.float32(0.05), np.zeros(8000, np.float32)
    clipped = np.clip(sine(0.9, 100.0, 1.0) + level * noise(1.0, 6), -0.5, 0.7)
    return {
        "speech": level * mixed(voice(3.0, 1)[0], noise(3.0, 2), 10.0),
        "long": level * mixed(voice(6.0, 2)[0], noise(6.0, 3, (0, 1000)), 0.0),
        "short": level * noise(0.5, 4)[:700],
        "pauses": np.concatenate([silence, level * voice(1.0, 5)[0], silence]),
        "clipped": clipped.astype(np.float32),
    }
