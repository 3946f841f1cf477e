"""Cuts audio of any length into overlapping windows, in memory that does not grow with the audio.

Audio of up to one window is one window. Longer audio is cut every hop, which is about half a window; the last window
ends with the audio, and so overlaps the one before it by more. All windows but the last are of one length, and the last
is of that length or less than a grid step shorter: windows begin where a column of every stage's map begins, so that
their maps lie on one grid.
"""

import math
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import SAMPLE_RATE, Bundle
from speakerlens.serving.pipeline.decode import (
    AudioInfo,
    DurationLimit,
    EncodedAudio,
    RawAudio,
    Recording,
    check_minimum,
)


@dataclass(frozen=True)
class Windowing:
    """Length of a window, distance from one to the next, and the grid their beginnings lie on, in samples of 16 kHz."""

    length: int
    hop: int
    grid: int


def windowing(seconds: float, bundles: Iterable[Bundle]) -> Windowing:
    """Windows of this many seconds, about half of which is the hop, on a grid that suits all of `bundles`."""
    grid = math.lcm(*(bundle.frame_shift * stage.stride for bundle in bundles for stage in bundle.stages))
    length = round(seconds * SAMPLE_RATE)
    return Windowing(length, max(length // 2 // grid, 1) * grid, grid)


@dataclass(frozen=True)
class Window:
    """A stretch of audio: samples float32 [n] at 16 kHz, `start` samples after the beginning.

    `whole` says that there is no other; it is known of a window that the end of the audio cut short.
    """

    start: int
    samples: NDArray[np.float32]
    whole: bool = False

    @property
    def stop(self) -> int:
        """Where it ends, in samples after the beginning."""
        return self.start + len(self.samples)


class WindowCutter:
    """Samples in, in pieces of any size; windows out as soon as they are filled."""

    def __init__(self, shape: Windowing) -> None:
        self._shape = shape
        # From the beginning of the window that was given out last; before the first, of the first.
        self._held = np.empty(shape.length + shape.hop, np.float32)
        self._start = 0
        self._filled = 0
        self._windows = 0

    @property
    def total(self) -> int:
        """Samples so far."""
        return self._start + self._filled

    def feed(self, samples: NDArray[np.float32]) -> list[Window]:
        """The windows that these samples fill."""
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
        """The last window, unless the audio ended with a window that was given out; a single one may be shorter."""
        length, grid = self._shape.length, self._shape.grid
        if not self._filled or (self._windows and self._filled == length):
            return []
        offset = max(0, -(-(self._filled - length) // grid) * grid)
        self._windows += 1
        return [Window(self._start + offset, self._held[offset : self._filled].copy(), self._windows == 1)]


async def cut(samples: NDArray[np.float32], shape: Windowing) -> AsyncIterator[Window]:
    """The windows of audio that is there, [n] at 16 kHz."""
    cutter = WindowCutter(shape)
    for start in range(0, len(samples), shape.hop):
        for window in cutter.feed(samples[start : start + shape.hop]):
            yield window
    for window in cutter.finish():
        yield window


class WindowReader:
    """Decodes a recording as far as the next window needs, each time it is asked for one.

    Args:
        audio: the recording.
        longest: the longest accepted.
        shape: how to cut it.
        min_samples: fewer in the whole recording are refused.
    """

    def __init__(
        self, audio: EncodedAudio | RawAudio, longest: DurationLimit, shape: Windowing, min_samples: int
    ) -> None:
        self.info = AudioInfo(0.0, 0, 0)
        self._windows = self._read(audio, longest, WindowCutter(shape), min_samples)

    def next(self) -> Window | None:
        """The next window, or None after the last; by then, `info` is that of the whole recording.

        Raises:
            InvalidArgumentError: something is wrong with the audio up to here.
        """
        return next(self._windows, None)

    def _read(
        self, audio: EncodedAudio | RawAudio, longest: DurationLimit, cutter: WindowCutter, min_samples: int
    ) -> Iterator[Window]:
        recording = Recording(audio, longest)
        for block in recording:
            yield from cutter.feed(block)
        self.info = recording.info
        check_minimum(self.info, cutter.total, min_samples)
        yield from cutter.finish()
