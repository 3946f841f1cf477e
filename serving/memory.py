"""How the C library keeps memory that was freed, in a server that is asked for large and small things by many threads.

glibc gives back a large block at once, until the first such block is freed: from then on blocks of that size, up to
32 MiB, come from heaps, of which there are eight for each core, and which only shrink at their end. Messages, audio and
maps are such blocks, and come and go in any order, so that the heaps grow for as long as the process lives.
"""

import ctypes
import os
import sys

# Names and numbers of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# What is larger is mapped, and given back when it is freed.
MAPPED_BYTES = 512 * 1024
# A heap keeps so much at its end, or it would give back and ask again at every call.
KEPT_BYTES = 8 * 2**20
HEAPS = 2


def steady() -> None:
    """Keeps large blocks out of the heaps, and the heaps few; before there are threads, and on glibc only.

    Whoever sets one of glibc's own variables, such as MALLOC_ARENA_MAX, has decided otherwise.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_THRESHOLD, MAPPED_BYTES), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_ARENA_MAX, HEAPS)):
            mallopt(option, value)
