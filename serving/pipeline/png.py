"""PNG pictures of maps and log-mel features, for programs that show them as they come.

A picture has a pixel a value, high frequencies on top, eight bits a pixel. Saliency has a palette from black over
violet and orange to pale yellow, whose lightness rises evenly, so that it is read alike in grey; features are grey. The
pixels are the bytes of ENCODING_UINT8, so that scale and offset hold for them too.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3
# Noise hardly compresses, and a fast level leaves a core free for others.
COMPRESSION = 3
# Red, green and blue of levels spread evenly from 0 to 255.
ANCHORS = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ]
)
_POSITIONS = np.linspace(0, 255, len(ANCHORS))
COLOURS: bytes = (
    np.stack([np.interp(np.arange(256), _POSITIONS, channel) for channel in ANCHORS.T], axis=1)
    .round()
    .astype(np.uint8)
    .tobytes()
)


def png(levels: NDArray[np.uint8], coloured: bool) -> bytes:
    """A picture of levels [rows, columns], row 0 at the bottom; with the palette, or in grey."""
    rows, columns = levels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, PALETTE if coloured else GREY, 0, 0, 0)
    # Each line begins with the number of its filter, which is none.
    lines = np.zeros((rows, columns + 1), np.uint8)
    lines[:, 1:] = levels[::-1]
    parts = [SIGNATURE, _chunk(b"IHDR", header)]
    if coloured:
        parts.append(_chunk(b"PLTE", COLOURS))
    parts += [_chunk(b"IDAT", zlib.compress(lines.tobytes(), COMPRESSION)), _chunk(b"IEND", b"")]
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
