"""One run on several processes, each with a share of every batch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """The processes that train together: `size` of them, of which this is number `rank`, counted from 0."""

    rank: int = 0
    size: int = 1


ALONE = World()
