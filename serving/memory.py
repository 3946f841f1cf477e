"""Settings of glibc's allocator for a server with large and small buffers in many threads.

glibc returns a large freed block to the system only until the first such block is freed; from then on blocks up to
32 MiB come from arenas, up to eight per core, which shrink only at their end. Messages, audio and maps are such blocks
and are freed in any order, so that without these settings the arenas grow for as long as the process lives.
"""

import ctypes
import os
import sys

# Names and numbers of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Larger blocks are mapped, and returned to the system when freed.
MAPPED_BYTES = 512 * 1024
# Free memory an arena keeps at its end, so that it does not return and request memory at every call.
KEPT_BYTES = 8 * 2**20
ARENAS = 2


def limit_arenas() -> None:
    """Keep large blocks out of the arenas, and the arenas few; call before threads start, has an effect on glibc only.

    Does nothing where one of glibc's own variables, such as MALLOC_ARENA_MAX, is set.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_THRESHOLD, MAPPED_BYTES), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_ARENA_MAX, ARENAS)):
            mallopt(option, value)
