"""Voice activity detection: whether a window of audio holds speech.

Voiced speech is periodic and louder than its background: a frame of 40 ms is voiced if its autocorrelation has a peak
between 70 and 400 Hz, and its level is above -60 dBFS and 3 dB above the window's 10th percentile. A window with 0.2 s
of voiced frames holds speech. Rain, wind, hum and hiss do not; babies, music and engines may. The decision depends on
the window alone, so that a stream is judged as a recording is. The figures are in docs/decisions/0011-windows.md.
"""

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import SAMPLE_RATE

RATE = SAMPLE_RATE // 2
FRAME, SHIFT, TRANSFORM = RATE // 25, RATE // 50, 512
# Frames per transform; more do not fit into the processor's cache.
FRAMES_AT_ONCE = 64
LAGS = slice(RATE // 400, RATE // 70 + 1)
LOWEST_HZ = 80
PERIODICITY = 0.5
LEAST_DBFS = -60.0
ABOVE_FLOOR_DB = 3.0
FLOOR_PERCENTILE = 10
LEAST_FRAMES = 10

_TAPER = np.hanning(FRAME).astype(np.float32)
_KEPT = np.fft.rfftfreq(TRANSFORM, 1 / RATE) >= LOWEST_HZ
_TAPER_CORRELATION = np.fft.irfft(np.abs(np.fft.rfft(_TAPER, TRANSFORM)) ** 2)[LAGS]
_TAPER_ENERGY = float((_TAPER**2).sum())
TINY = 1e-20


def holds_speech(samples: NDArray[np.float32]) -> bool:
    """Return whether samples, float32 [n] at 16 kHz, hold speech."""
    halved = samples[: len(samples) // 2 * 2].reshape(-1, 2).mean(axis=1)
    if len(halved) < FRAME:
        return False
    frames = np.lib.stride_tricks.sliding_window_view(halved, FRAME)[::SHIFT]
    parts = [_measured(frames[start : start + FRAMES_AT_ONCE]) for start in range(0, len(frames), FRAMES_AT_ONCE)]
    level, periodicity = (np.concatenate(values) for values in zip(*parts, strict=True))
    least = max(LEAST_DBFS, float(np.percentile(level, FLOOR_PERCENTILE)) + ABOVE_FLOOR_DB)
    return bool(((periodicity > PERIODICITY) & (level > least)).sum() >= LEAST_FRAMES)


def _measured(frames: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the level in dBFS and the periodicity, 0 to 1, of frames [n, FRAME]: float64 [n] each."""
    spectrum = np.fft.rfft(frames * _TAPER, TRANSFORM)
    power = (spectrum.real**2 + spectrum.imag**2) * _KEPT
    correlation = np.fft.irfft(power)
    energy = correlation[:, 0] + TINY
    # The taper's own autocorrelation falls with the lag (Boersma, 1993); its energy is that at lag 0.
    peak = (correlation[:, LAGS] / _TAPER_CORRELATION).max(axis=1) * (_TAPER_ENERGY / energy)
    return 10 * np.log10(energy / _TAPER_ENERGY), peak
