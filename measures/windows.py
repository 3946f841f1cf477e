"""The windows in which audio is computed: how many, where they begin, how long they are, and what they count.

Audio of up to one window is one window. Longer audio has a full window every hop, about half a window, and a last one
that ends with the audio. A stream's full windows are answered as they are filled, so only the last one may depend on
the length of the whole. It grows with the audio that it alone covers, so that the samples of all windows grow by at
most 15 % where the audio grows by 7 % (docs/decisions/0096-short-last-window.md). The page has the same rule in
speakerlens/web/windows.mjs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

WINDOW_SECONDS: Final = 3.0
# The last window's share of a full one is x * (1 - 1 / BEND + x / BEND) where x is its new part's share of a hop.
BEND: Final = 10
# It has at least one of so many parts of what is beyond two windows: long audio leaves room for a full one.
PART: Final = 5


@dataclass(frozen=True)
class Windowing:
    """How audio is cut into windows; all in samples.

    Attributes:
        length: of a window.
        hop: from one window to the next; a multiple of `grid`.
        grid: windows begin at its multiples, where a column of every map begins.
        least: no window of several is shorter, as models refuse less.
        full: whether the last window is as long as the others, but for less than a grid step.
    """

    length: int
    hop: int
    grid: int
    least: int = 0
    full: bool = False

    @property
    def with_full_last(self) -> "Windowing":
        """Return the same windows, but for the last, which is a full one."""
        return replace(self, full=True)

    def count(self, samples: int) -> int:
        """Return the number of windows in audio of so many samples."""
        return 1 + max(0, -(-(samples - self.length) // self.hop))

    def computed(self, samples: int) -> int:
        """Return the samples of all windows in audio of so many samples."""
        return (self.count(samples) - 1) * self.length + samples - self.last(samples)

    def last(self, samples: int) -> int:
        """Return where the last window of audio of so many samples begins."""
        beyond = samples - self.length
        if beyond <= 0:
            return 0
        new = beyond % self.hop or self.hop
        share = self.length * new // self.hop
        share = share * ((BEND - 1) * self.hop + new) // (BEND * self.hop)
        wanted = self.length if self.full else max(share, (samples - 2 * self.length) // PART)
        # It overlaps the one before by a grid step at least.
        begin = (samples - max(wanted, new + self.grid, self.least)) // self.grid * self.grid
        return max(begin, -(-beyond // self.grid) * self.grid)

    def starts(self, samples: int) -> list[int]:
        """Return where the windows of audio of so many samples begin."""
        return [*range(0, (self.count(samples) - 1) * self.hop, self.hop), self.last(samples)]

    def weight(self, samples: int) -> float:
        """Return what a window of so many samples counts in a recording of several: its share of a full one."""
        return min(1.0, (samples + self.grid) / self.length)


def windowing_of(length: int, columns: Iterable[int], least: int) -> Windowing:
    """Return windows with a hop of about half.

    Args:
        length: of a window, in samples.
        columns: samples of a column of every map.
        least: samples that all models accept.
    """
    grid = math.lcm(*columns)
    return Windowing(length, max(length // 2 // grid, 1) * grid, grid, least)
