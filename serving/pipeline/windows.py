"""Cut audio of any length into overlapping windows, in memory that does not grow with the audio.

The rule is in `measures.windows`: full windows every hop, each cut as soon as it is filled, and a last one that ends
with the audio.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.windows import Windowing, windowing_of
from speakerlens.serving.bundle import SAMPLE_RATE, Bundle
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio, Recording
from speakerlens.serving.pipeline.samples import SAMPLE_TYPES, AudioInfo, DurationLimit, check_minimum

# Copying and checking as many samples takes about 0.1 ms.
BRIEF_SAMPLES = 5 * SAMPLE_RATE


def windowing(seconds: float, bundles: Iterable[Bundle]) -> Windowing:
    """Return windows of `seconds`, on a grid that fits the maps of all `bundles`, none shorter than they accept."""
    models = list(bundles)
    columns = (bundle.frame_shift * stage.stride for bundle in models for stage in bundle.stages)
    return windowing_of(round(seconds * SAMPLE_RATE), columns, max(bundle.min_samples for bundle in models))


@dataclass(frozen=True)
class Window:
    """Samples, float32 [n] at 16 kHz, that begin `start` samples into the audio, and what they count beside others."""

    start: int
    samples: NDArray[np.float32]
    weight: float = 1.0

    @property
    def stop(self) -> int:
        """Return its end, in samples from the beginning of the audio."""
        return self.start + len(self.samples)


class WindowCutter:
    """Cut samples that arrive in pieces of any size into windows, each as soon as it is filled."""

    def __init__(self, shape: Windowing) -> None:
        self._shape = shape
        # Samples from the beginning of the last complete window on; before the first, all samples.
        self._held = np.empty(shape.length + shape.hop, np.float32)
        self._start = 0
        self._filled = 0
        self._windows = 0

    @property
    def total(self) -> int:
        """Return the number of samples so far."""
        return self._start + self._filled

    def feed(self, samples: NDArray[np.float32]) -> list[Window]:
        """Return the windows that these samples, float32 [n], complete."""
        length, hop = self._shape.length, self._shape.hop
        windows = []
        while len(samples):
            goal = length if not self._windows else length + hop
            taken = samples[: goal - self._filled]
            self._held[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            samples = samples[len(taken) :]
            if self._filled < goal:
                break
            if self._windows:
                self._held[:length] = self._held[hop:].copy()
                self._start += hop
                self._filled = length
            self._windows += 1
            windows.append(Window(self._start, self._held[:length].copy()))
        return windows

    def finish(self) -> list[Window]:
        """Return the last window, unless the audio ended with a complete one; a single window may be shorter."""
        if not self._filled or (self._windows and self._filled == self._shape.length):
            return []
        start = self._shape.last(self.total)
        samples = self._held[start - self._start : self._filled].copy()
        weight = self._shape.weight(len(samples)) if self._windows else 1.0
        self._windows += 1
        return [Window(start, samples, weight)]


async def cut(samples: NDArray[np.float32], shape: Windowing) -> AsyncIterator[Window]:
    """Yield the windows of samples, float32 [n] at 16 kHz."""
    cutter = WindowCutter(shape)
    for start in range(0, len(samples), shape.hop):
        for window in cutter.feed(samples[start : start + shape.hop]):
            yield window
    for window in cutter.finish():
        yield window


def _is_brief(audio: RawAudio, shape: Windowing) -> bool:
    frames = len(audio.data) // SAMPLE_TYPES[audio.sample_type].itemsize
    return (audio.sample_rate, audio.channels) == (SAMPLE_RATE, 1) and frames <= min(shape.length, BRIEF_SAMPLES)


class WindowReader:
    """Decode a recording window by window, each time only as far as needed.

    Args:
        audio: the recording.
        limit: the longest accepted.
        shape: how to cut it.
        min_samples: the shortest accepted, in samples at 16 kHz.
        field: of the request, for error messages.
        deadline: of the request, on the clock of `time.monotonic`.

    Attributes:
        info: format and duration; complete once it is finished.
        finished: whether no window follows those that were returned.
        brief: whether `next` takes less time than handing it to a thread: one window of samples as they are needed.
    """

    def __init__(
        self,
        audio: EncodedAudio | RawAudio,
        limit: DurationLimit,
        shape: Windowing,
        min_samples: int,
        field: str = "audio",
        deadline: float | None = None,
    ) -> None:
        self.info = AudioInfo(0.0, 0, 0)
        self.finished = False
        self.brief = isinstance(audio, RawAudio) and _is_brief(audio, shape)
        self._field = field
        self._deadline = deadline
        self._windows = self._read(audio, limit, WindowCutter(shape), min_samples)

    def next(self) -> Window | None:
        """Return the next window, or None after the last.

        Raises:
            InvalidArgumentError: the audio up to here is invalid, or the whole is too short.
        """
        return next(self._windows, None)

    def _read(
        self, audio: EncodedAudio | RawAudio, limit: DurationLimit, cutter: WindowCutter, min_samples: int
    ) -> Iterator[Window]:
        recording = Recording(audio, limit, self._field, self._deadline)
        # Each window is held back until it is known whether another follows.
        held: Window | None = None
        for block in recording:
            for window in cutter.feed(block):
                if held is not None:
                    yield held
                held = window
        self.info = recording.info
        check_minimum(self.info, cutter.total, min_samples, self._field)
        for window in cutter.finish():
            if held is not None:
                yield held
            held = window
        self.finished = True
        if held is not None:
            yield held
