"""Files whose parts are moved, missing, repeated or of another size: FLAC blocks, Ogg pages, MP4 boxes."""

import struct
from collections.abc import Callable
from functools import cache

from hypothesis import strategies as st

from tests.serving.fuzz.files import FORMS, whole
from tests.test_formats import written

EXTREMES = (0, 1, 7, 8, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFF8, 0xFFFF_FFFF)


def blocks(data: bytes) -> list[bytes]:
    """The magic of a FLAC, its metadata blocks, and its frames as one."""
    parts, at = [data[:4]], 4
    while at + 4 <= len(data) and (at == 4 or not parts[-1][0] & 0x80):
        size = 4 + int.from_bytes(data[at + 1 : at + 4], "big")
        parts.append(data[at : at + size])
        at += size
    return [*parts, data[at:]]


def pages(data: bytes) -> list[bytes]:
    """The pages of an Ogg."""
    return [b"OggS" + page for page in data.split(b"OggS")[1:]]


def boxes(data: bytes) -> list[bytes]:
    """The boxes of an MP4; those of `moov` one by one, so that they come to lie outside it."""
    parts, at = [], 0
    while at + 8 <= len(data):
        size = 8 if data[at + 4 : at + 8] in (b"moov", b"trak", b"mdia") else int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at : at + max(size, 8)])
        at += max(size, 8)
    return parts


@cache
def files() -> tuple[tuple[list[bytes], int], ...]:
    """Files in parts, and where in a part its size is."""
    kinds: dict[str, tuple[Callable[[bytes], list[bytes]], int]] = {"FLAC": (blocks, 0), "OGG": (pages, 26)}
    made = [(kinds[form[0]], data) for form, data in zip(FORMS, whole(), strict=True) if form[0] in kinds]
    made += [((boxes, 0), written(name)) for name in ("aac in mp4", "alac in m4a")]
    return tuple((split(data), size_at) for (split, size_at), data in made)


@st.composite
def rearranged(draw: st.DrawFn) -> bytes:
    """A file of such parts after a few changes."""
    original, size_at = draw(st.sampled_from(files()))
    parts = list(original)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(parts) - 1))
        what = draw(st.sampled_from(("drop", "repeat", "move", "size", "nest")))
        if what == "drop" and len(parts) > 1:
            del parts[at]
        elif what == "repeat":
            parts[at:at] = [parts[at]] * draw(st.sampled_from((1, 2, 50)))
        elif what == "move":
            parts.insert(draw(st.integers(0, len(parts) - 1)), parts.pop(at))
        elif what == "size":
            size = struct.pack(">I", draw(st.sampled_from(EXTREMES)))
            parts[at] = parts[at][:size_at] + size + parts[at][size_at + 4 :]
        else:
            parts[at] = parts[at][: draw(st.integers(0, len(parts[at])))] + parts[draw(st.integers(0, len(parts) - 1))]
    return b"".join(parts)
