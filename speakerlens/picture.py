"""Reads the values back out of the pictures that a server makes of maps: PNG of 8 bits a pixel, without filters."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def levels(png: bytes, rows: int, columns: int) -> NDArray[np.uint8]:
    """Return the levels [rows, columns], low frequencies first.

    Raises:
        ValueError: it is no such picture, or of another size.
    """
    try:
        width, height, depth = struct.unpack_from(">IIB", png, 16)
        data, at = b"", 8
        while at < len(png):
            length, kind = struct.unpack_from(">I4s", png, at)
            data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
            at += 12 + length
        lines = np.frombuffer(zlib.decompress(data), np.uint8)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"not a picture: {error}") from error
    if (width, height, depth) != (columns, rows, 8) or lines.size != rows * (columns + 1):
        raise ValueError(f"a picture of {height} x {width} pixels of {depth} bits, not {rows} x {columns} of 8")
    return lines.reshape(rows, columns + 1)[::-1, 1:]
