"""Whether a compressed or telephone file is whole, by its structure.

Decoders skip damaged pages and frames without a word, and take the last page that is there for the end. So pages of
Ogg (RFC 3533) and frames of MPEG audio (ISO 11172-3) are followed from the first to the last, and the lengths in the
headers of AU, NIST SPHERE and VOC are compared with what is there. Other containers are checked while they are decoded.
"""

import re
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from speakerlens.signatures import mpeg_frame_bytes

_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_PAGE_HEADER = 27
_LAST_PAGE = 0x04
_AU_STREAMED = 0xFFFF_FFFF
_VOC_SOUND = (1, 9)
"""Blocks of VOC that begin with the description of the sound in them."""

_TAIL = 4_096
"""Bytes of zeros or of unknown tags that may follow the last frame of MP3; recorders fill up blocks."""
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")

_Bytes = memoryview


def fault(data: memoryview, container: str) -> str | None:
    """Return what is missing or damaged in a file, or None.

    Args:
        data: the whole file.
        container: such as "OGG"; those without a check here give None.
    """
    check = _CHECKS.get(container)
    return check(data) if check else None


def _ogg_fault(data: _Bytes) -> str | None:
    at, number, last = 0, None, False
    while at < len(data):
        header = bytes(data[at : at + _PAGE_HEADER])
        if header[:4] != b"OggS":
            lost = _next(data, at, b"OggS")
            if lost is None:
                return None if last else f"damaged OGG: from byte {at:,} to its end there are no pages"
            return f"damaged OGG: {lost - at:,} bytes from byte {at:,} are no pages"
        segments = header[26] if len(header) == _PAGE_HEADER else 0
        table = bytes(data[at + _PAGE_HEADER : at + _PAGE_HEADER + segments])
        size = _PAGE_HEADER + segments + sum(table)
        if len(header) < _PAGE_HEADER or len(table) < segments or at + size > len(data):
            return "cut short: its last Ogg page is not complete"
        if int.from_bytes(header[22:26], "little") != _ogg_checksum(bytes(data[at : at + size])):
            return f"damaged OGG: the page at byte {at:,} does not match its checksum"
        own = int.from_bytes(header[18:22], "little")
        if number is not None and own != number + 1:
            return f"damaged OGG: pages are missing before byte {at:,}"
        number, last = own, bool(header[5] & _LAST_PAGE)
        at += size
    return None


def _ogg_checksum(page: bytes) -> int:
    """Return the CRC-32 of a page as Ogg has it: bits the other way round than in zlib, and zeros to start with."""
    turned = (page[:22] + bytes(4) + page[26:]).translate(_BITS_REVERSED)
    value = zlib.crc32(turned, 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{value:032b}"[::-1], 2)


def _next(data: _Bytes, at: int, magic: bytes) -> int | None:
    found = re.compile(re.escape(magic)).search(data, at)
    return found.start() if found else None


class _Frame(NamedTuple):
    """A header of MPEG audio: size of the frame in bytes, and what all frames of a file have in common."""

    size: int
    kind: tuple[int, int, int]


def _frame(data: _Bytes, at: int) -> _Frame | None:
    """Return the MPEG audio frame that begins at a byte; None if there is none, or one of a free bit rate."""
    head = bytes(data[at : at + 4])
    size = mpeg_frame_bytes(head)
    return _Frame(size, (head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 2 & 3)) if size else None


def _mpeg_fault(data: _Bytes) -> str | None:
    at = first = _mpeg_start(data)
    start = _frame(data, at)
    if start is None:  # a free bit rate, which gives frames no size
        return None
    promised = _promised_frames(data, at, start)
    frames = 0
    while at < len(data):
        frame = _frame(data, at)
        if frame is None or frame.kind != start.kind:
            break
        if at + frame.size > len(data):
            return "cut short: its last MP3 frame is not complete"
        frames += 1
        at += frame.size
    rest = bytes(data[at : at + _TAIL])
    tagged = rest.startswith(_TAGS) or not rest
    if promised is not None and frames < promised:
        where = "" if tagged else f", and byte {at:,} begins no frame"
        return f"cut short or damaged: its header says {promised:,} MP3 frames, and {frames:,} follow{where}"
    if tagged or len(data) - at < _TAIL:
        return None
    if promised is not None and frames >= promised:
        return None  # something that is not of the recording follows it
    return f"damaged MP3: at byte {at:,}, {at - first:,} bytes after the first frame, no frame begins"


def _mpeg_start(data: _Bytes) -> int:
    """Return where the first frame begins, after the tags."""
    at = 0
    while bytes(data[at : at + 3]) == b"ID3" and len(data) >= at + 10:
        at += 10 + sum((data[at + 6 + place] & 0x7F) << 7 * (3 - place) for place in range(4))
    while at < len(data) and data[at] == 0:  # padding after a tag
        at += 1
    return at


def _promised_frames(data: _Bytes, at: int, frame: _Frame) -> int | None:
    """Return how many frames the first one says there are, itself among them; None if it does not."""
    first = bytes(data[at : at + min(frame.size, 256)])
    for magic in (b"Xing", b"Info"):
        place = first.find(magic)
        if place >= 0 and len(first) >= place + 12 and first[place + 7] & 1:
            return 1 + int.from_bytes(first[place + 8 : place + 12], "big")
    place = first.find(b"VBRI")
    return 1 + int.from_bytes(first[place + 14 : place + 18], "big") if place >= 0 else None


def _au_fault(data: _Bytes) -> str | None:
    order = "big" if data[0] == ord(".") else "little"
    header, size = (int.from_bytes(data[at : at + 4], order) for at in (4, 8))  # type: ignore[arg-type]
    return None if size == _AU_STREAMED else _lacking(size, len(data) - header)


def _nist_fault(data: _Bytes) -> str | None:
    size = int(bytes(data[8:16]))
    text = bytes(data[:size]).decode("latin-1")
    fields = dict(re.findall(r"(?m)^(sample_count|sample_n_bytes|channel_count) -i (\d+)\s*$", text))
    if "sample_count" not in fields or "shorten" in text:
        return None
    promised = int(fields["sample_count"]) * int(fields.get("sample_n_bytes", 1)) * int(fields.get("channel_count", 1))
    return _lacking(promised, len(data) - size)


def _voc_fault(data: _Bytes) -> str | None:
    at = int.from_bytes(data[20:22], "little")
    if at + 4 > len(data) or data[at] not in _VOC_SOUND:
        return None
    return _lacking(int.from_bytes(data[at + 1 : at + 4], "little"), len(data) - at - 4)


def _lacking(promised: int, held: int) -> str | None:
    return f"cut short, holds {held:,} bytes of {promised:,}" if held < promised else None


_CHECKS: Mapping[str, Callable[[_Bytes], str | None]] = {
    "OGG": _ogg_fault,
    "MP3": _mpeg_fault,
    "AU": _au_fault,
    "NIST": _nist_fault,
    "VOC": _voc_fault,
}
