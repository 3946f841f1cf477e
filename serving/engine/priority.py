"""Two classes of work: somebody is waiting for it, or it should be done some time."""

from enum import IntEnum


class Priority(IntEnum):
    """Whose turn comes first; lower is sooner.

    INTERACTIVE work never waits for more than one batch of BULK work, and BULK work is never put off for ever.
    """

    INTERACTIVE = 0
    BULK = 1
