"""Check the container of an audio file before a decoder in C sees it.

`checked` and `checked_file` recognise the container by its first bytes, check its structure in microseconds, and return
what a decoder may read. They are shared by server, training and client, so that all of them read the same files and
refuse the others with the same sentence.
"""

import io
import mmap
import os
import re
import stat
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from speakerlens.chunks import Kind, Layout, chunk_layout
from speakerlens.signatures import AudioFileError, unread_audio, unreadable

__all__ = [
    "HEADER_BYTES",
    "AudioFileError",
    "CheckedAudio",
    "Extent",
    "checked",
    "checked_file",
    "extent",
    "header_name",
]

HEADER_BYTES = 12
"""How many of a file's first bytes `header_name` needs."""

_RIFF: dict[tuple[bytes, bytes], Kind] = {
    (b"RIFF", b"WAVE"): "WAV",
    (b"RIFX", b"WAVE"): "RIFX",
    (b"RF64", b"WAVE"): "RF64",
    (b"FORM", b"AIFF"): "AIFF",
    (b"FORM", b"AIFC"): "AIFF",
}
_W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_OGG_CAPTURE = b"OggS"
_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x03\x06\x07]", re.DOTALL)
_OGG_OTHERS = ((b"Speex   ", "Speex"), (b"\x80theora", "Theora video"))
_MAX_BLOCKS = 10_000
_MAX_TAGS = 10
_STREAMINFO_BYTES = 34
# What is assumed of files whose header does not say it.
_USUAL_RATE = 16_000
_PCM_BYTES_PER_SECOND, _COMPRESSED_BYTES_PER_SECOND = 32_000, 8_000


class CheckedAudio(io.RawIOBase):
    """A file whose structure has been checked, for a decoder to read.

    Shows the bytes of a layout, with its patches. A seek to before the beginning stays in place: libsndfile does it if
    a damaged header says so, and an error in its callback prints a stack trace.

    Args:
        data: the whole file; no samples of it are copied.
        layout: what may be seen.
        descriptor: of the open file that `data` is a map of; the samples are then read from it, as a file that shrinks
            while it is mapped ends the process. It is closed with this object.
    """

    def __init__(self, data: memoryview, layout: Layout, descriptor: int | None = None) -> None:
        super().__init__()
        self.container = layout.container
        self.held, self.missing = layout.held, layout.missing
        head_bytes = max((offset + len(patch) for offset, patch in layout.patches), default=0)
        head = bytearray(data[layout.start : layout.start + head_bytes])
        for offset, patch in layout.patches:
            head[offset : offset + len(patch)] = patch
        self._head = memoryview(head)
        self._rest_at = layout.start + head_bytes
        self._rest = None if descriptor is not None else data[self._rest_at : layout.end]
        self._descriptor = descriptor
        self._size = layout.end - layout.start
        self._at = 0

    def close(self) -> None:
        """Close the file, if it is one on disk."""
        if not self.closed and self._descriptor is not None:
            os.close(self._descriptor)
        super().close()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to an offset, or stay in place if it is before the beginning; return the offset."""
        target = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if target >= 0:
            self._at = target
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer as many bytes as there are; return their number."""
        target = memoryview(buffer)
        after_head = self._at - len(self._head)
        if after_head >= 0 and self._rest is not None:  # most calls; decoders of MP3 read a few bytes at a time
            part = self._rest[after_head : after_head + len(target)]
            target[: len(part)] = part
            self._at += len(part)
            return len(part)
        count = max(0, min(len(target), self._size - self._at))
        head = self._head[self._at : self._at + count]
        target[: len(head)] = head
        if count > len(head):
            rest = self._read_rest(self._at + len(head) - len(self._head), count - len(head))
            target[len(head) : len(head) + len(rest)] = rest
            count = len(head) + len(rest)
        self._at += count
        return count

    def _read_rest(self, start: int, count: int) -> bytes | memoryview:
        """Return bytes from an offset that counts from the end of the head."""
        if self._rest is not None:
            return self._rest[start : start + count]
        assert self._descriptor is not None
        return os.pread(self._descriptor, count, self._rest_at + start)


def checked(data: bytes | memoryview) -> CheckedAudio:
    """Check a whole audio file, and return what a decoder may read.

    Raises:
        AudioFileError: the container is not one that is read, or its structure is damaged.
    """
    view = memoryview(data)
    return CheckedAudio(view, layout(view))


def checked_file(path: str | Path) -> CheckedAudio:
    """Check an audio file on disk, of which no more is read than its structure; a pipe is read to its end.

    Raises:
        AudioFileError: as for `checked`, or the file is empty.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return checked(file.read())
        if not os.fstat(file.fileno()).st_size:
            raise AudioFileError("empty, not audio")
        try:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError:  # file systems that map no files
            return checked(file.read())
        found = layout(view)
        return CheckedAudio(view, found, os.dup(file.fileno()))


def header_name(start: bytes) -> str | None:
    """Return the container whose header bytes begin with, or None; for raw samples, which should have no header.

    Only what samples do not begin with by chance counts: of MP3, only the tag before it.
    """
    if kind := _chunked(start):
        return "WAV" if kind == "RIFX" else kind
    names = {container for beginning, container, _ in _CHECKS if start.startswith(beginning[:HEADER_BYTES])}
    if start[:3] == b"ID3" and start[3:4] in (b"\2", b"\3", b"\4"):
        return "MP3"
    return names.pop() if names else unread_audio(start)


class Extent(NamedTuple):
    """What a file holds: its container, frames, sample rate in Hz and channels."""

    container: str
    frames: float
    rate: int
    channels: int


def extent(data: bytes) -> Extent:
    """Return what the header of an audio file says that it holds, without a check; an estimate where it does not."""
    if data[:4] == b"fLaC" and len(data) >= 8 + _STREAMINFO_BYTES:
        form = int.from_bytes(data[18:26], "big")
        if rate := form >> 44:
            frames = form & 2**36 - 1 or rate * len(data) / _PCM_BYTES_PER_SECOND
            return Extent("FLAC", frames, rate, 1 + (form >> 41 & 7))
    if _chunked(data[:HEADER_BYTES]) in ("WAV", "RF64"):
        at = data.find(b"fmt ", HEADER_BYTES, 4096)
        if at > 0 and at + 20 <= len(data):
            channels, rate, bytes_per_second = struct.unpack_from("<HII", data, at + 10)
            if bytes_per_second:
                return Extent("WAV", rate * len(data) / bytes_per_second, rate, channels)
    container = header_name(data[:HEADER_BYTES]) or "MP3"
    compressed = container in ("OGG", "MP3")
    seconds = len(data) / (_COMPRESSED_BYTES_PER_SECOND if compressed else _PCM_BYTES_PER_SECOND)
    return Extent(container, seconds * _USUAL_RATE, _USUAL_RATE, 1)


def layout(data: memoryview) -> Layout:
    """Return what a decoder may see of a file.

    Raises:
        AudioFileError: the container is not one that is read, or its structure is damaged.
    """
    start = _tags_end(data)
    body = data[start:]
    magic = bytes(body[:40])
    if kind := _chunked(magic):
        found = chunk_layout(body, kind)
        return replace(found, start=start, end=start + found.end)
    # Decoders of FLAC and MP3 know the tag, and MP3 may need its length.
    for beginning, container, check in _CHECKS:
        if magic.startswith(beginning) and (container == "FLAC" or not start):
            check(body)
            return Layout(container, 0, len(data))
    if _is_mpeg(magic):
        return Layout("MP3", 0, len(data))
    if start:
        raise AudioFileError(f"damaged MP3: after its ID3 tag, no audio at byte {start:,}")
    raise unreadable(data)


def _chunked(magic: bytes) -> Kind | None:
    if magic[:16] == _W64[: len(magic)] and len(magic) >= HEADER_BYTES:
        return "W64"
    if magic[:4] == b"caff":
        return "CAF"
    return _RIFF.get((magic[:4], magic[8:12]))


def _tags_end(data: memoryview) -> int:
    """Return where the ID3 tags at the beginning end; 0 if there is none.

    Raises:
        AudioFileError: a tag is longer than the file, or there are too many.
    """
    at = 0
    for _ in range(_MAX_TAGS):
        if bytes(data[at : at + 3]) != b"ID3" or len(data) < at + 10:
            return at
        size = 10 + sum((data[at + 6 + place] & 0x7F) << 7 * (3 - place) for place in range(4))
        at += size
        if at >= len(data):
            raise AudioFileError(f"damaged MP3: its ID3 tag says {size:,} bytes, and the file has {len(data):,}")
    raise AudioFileError(f"damaged MP3: it has more than {_MAX_TAGS} ID3 tags")


def _is_mpeg(magic: bytes) -> bool:
    """Return whether bytes are the header of an MPEG audio frame of layer 1, 2 or 3 with allowed numbers."""
    if len(magic) < 4 or magic[0] != 0xFF or magic[1] & 0xE0 != 0xE0:
        return False
    version, layer = magic[1] >> 3 & 3, magic[1] >> 1 & 3
    return version != 1 and layer != 0 and magic[2] >> 4 != 15 and magic[2] >> 2 & 3 != 3


def _check_flac(data: memoryview) -> None:
    at = 4
    for _ in range(_MAX_BLOCKS):
        if at + 4 > len(data):
            raise AudioFileError(f"damaged FLAC: its metadata ends at byte {len(data):,}, before the audio")
        kind, size = data[at], int.from_bytes(data[at + 1 : at + 4], "big")
        if at == 4 and (kind & 0x7F, size) != (0, _STREAMINFO_BYTES):
            raise AudioFileError("damaged FLAC: it does not begin with a block STREAMINFO")
        at += 4 + size
        if at > len(data):
            raise AudioFileError(
                f"damaged FLAC: a metadata block says {size:,} bytes and {len(data) - at + size:,} follow"
            )
        if kind & 0x80:
            return
    raise AudioFileError(f"damaged FLAC: it has more than {_MAX_BLOCKS:,} metadata blocks")


def _check_ogg(data: memoryview) -> None:
    first = bytes(data[:512])
    if len(first) < 28 or not _FIRST_PAGE.match(first):
        raise AudioFileError("damaged OGG: it does not begin with the first page of a stream")
    payload = first[27 + first[26] :]
    for magic, name in _OGG_OTHERS:
        if payload.startswith(magic):
            raise AudioFileError(f"OGG with {name}, which is not read (Vorbis, Opus and FLAC are)")
    if second := _FIRST_PAGE.search(data, len(_OGG_CAPTURE)):
        raise AudioFileError(
            f"several Ogg streams in one file, the second from byte {second.start():,}: use each as a file of its own"
        )


def _check_au(data: memoryview) -> None:
    if len(data) < 24:
        raise AudioFileError(f"damaged AU: {len(data)} bytes, less than its header")
    header = int.from_bytes(data[4:8], "big" if data[0] == ord(".") else "little")
    if not 24 <= header <= len(data):
        raise AudioFileError(f"damaged AU: its header says {header:,} bytes, and the file has {len(data):,}")


def _check_nist(data: memoryview) -> None:
    size = bytes(data[8:16]).strip()
    if not size.isdigit() or int(size) > len(data):
        raise AudioFileError(f"damaged NIST SPHERE: its header does not fit into {len(data):,} bytes")


def _check_voc(data: memoryview) -> None:
    at = struct.unpack_from("<H", data, 20)[0] if len(data) >= 26 else len(data)
    for _ in range(_MAX_BLOCKS):
        if at + 4 > len(data) or data[at] == 0:
            return
        size = int.from_bytes(data[at + 1 : at + 4], "little")
        at += 4 + size
        if at > len(data) and data[at - size - 4] not in (1, 2, 9):
            raise AudioFileError(f"damaged VOC: a block says {size:,} bytes and {len(data) - at + size:,} follow")
    raise AudioFileError(f"damaged VOC: it has more than {_MAX_BLOCKS:,} blocks")


_CHECKS: tuple[tuple[bytes, str, Callable[[memoryview], None]], ...] = (
    (b"fLaC", "FLAC", _check_flac),
    (_OGG_CAPTURE, "OGG", _check_ogg),
    (b".snd", "AU", _check_au),
    (b"dns.", "AU", _check_au),
    (b"NIST_1A\n", "NIST", _check_nist),
    (b"Creative Voice File\x1a", "VOC", _check_voc),
)
