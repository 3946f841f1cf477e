"""Cut audio of any length into overlapping windows, in memory that does not grow with the audio.

Audio of up to one window is one window. Longer audio is cut every hop, about half a window. The last window ends with
the audio, so it overlaps the one before it by more, and may be shorter than the others by less than a grid step.
Windows begin where a column of every map begins, so that all maps lie on one grid.
"""

import math
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import SAMPLE_RATE, Bundle
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio, Recording
from speakerlens.serving.pipeline.samples import SAMPLE_TYPES, AudioInfo, DurationLimit, check_minimum

# Copying and checking as many samples takes about 0.1 ms.
BRIEF_SAMPLES = 5 * SAMPLE_RATE


@dataclass(frozen=True)
class Windowing:
    """Length of a window, hop from one to the next, and grid of their beginnings, in samples at 16 kHz."""

    length: int
    hop: int
    grid: int

    def count(self, samples: float) -> int:
        """Return the number of windows in audio of this length."""
        return 1 + max(0, math.ceil((samples - self.length) / self.hop))


def windowing(seconds: float, bundles: Iterable[Bundle]) -> Windowing:
    """Return windows of `seconds`, with a hop of about half, on a grid that fits the maps of all `bundles`."""
    grid = math.lcm(*(bundle.frame_shift * stage.stride for bundle in bundles for stage in bundle.stages))
    length = round(seconds * SAMPLE_RATE)
    return Windowing(length, max(length // 2 // grid, 1) * grid, grid)


@dataclass(frozen=True)
class Window:
    """Samples, float32 [n] at 16 kHz, that begin `start` samples into the audio."""

    start: int
    samples: NDArray[np.float32]

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
        length, grid = self._shape.length, self._shape.grid
        if not self._filled or (self._windows and self._filled == length):
            return []
        offset = max(0, -(-(self._filled - length) // grid) * grid)
        self._windows += 1
        samples = self._held[offset : self._filled].copy()
        return [Window(self._start + offset, samples)]


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
