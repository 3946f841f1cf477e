"""Whether somebody speaks in a window of audio.

Voices are periodic, and louder than what lies behind them: a frame of 40 ms counts where its autocorrelation has a
peak between 70 and 400 Hz, and its level stands above -60 dBFS and above that of the window's quietest tenth. A window
holds speech where a fifth of a second of it counts. Rain, wind, hum and hiss do not; babies, music and engines may. The
decision depends on the window alone, so that live audio is judged as a whole recording is. The figures are in
docs/decisions/0011-windows.md.
"""

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import SAMPLE_RATE

RATE = SAMPLE_RATE // 2
FRAME, SHIFT, TRANSFORM = RATE // 25, RATE // 50, 512
# At a time: more fall out of the processor's cache.
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
    """Whether these samples, [n] at 16 kHz, hold speech."""
    halved = samples[: len(samples) // 2 * 2].reshape(-1, 2).mean(axis=1)
    if len(halved) < FRAME:
        return False
    frames = np.lib.stride_tricks.sliding_window_view(halved, FRAME)[::SHIFT]
    parts = [_measured(frames[start : start + FRAMES_AT_ONCE]) for start in range(0, len(frames), FRAMES_AT_ONCE)]
    level, periodicity = (np.concatenate(values) for values in zip(*parts, strict=True))
    least = max(LEAST_DBFS, float(np.percentile(level, FLOOR_PERCENTILE)) + ABOVE_FLOOR_DB)
    return bool(((periodicity > PERIODICITY) & (level > least)).sum() >= LEAST_FRAMES)


def _measured(frames: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Level in dBFS and periodicity from 0 to 1 of each frame."""
    spectrum = np.fft.rfft(frames * _TAPER, TRANSFORM)
    power = (spectrum.real**2 + spectrum.imag**2) * _KEPT
    correlation = np.fft.irfft(power)
    energy = correlation[:, 0] + TINY
    # The taper's own correlation falls with the lag, which is no property of the sound; its energy is that at lag 0.
    peak = (correlation[:, LAGS] / _TAPER_CORRELATION).max(axis=1) * (_TAPER_ENERGY / energy)
    return 10 * np.log10(energy / _TAPER_ENERGY), peak
