"""Check the container of an audio file before a decoder in C sees it.

`layout` recognises the container by its first bytes, checks its structure in microseconds, and returns what a decoder
may see. It is shared by server, training and client, so that all of them read the same files and refuse the others with
the same sentence.
"""

import importlib.util
import re
import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from speakerlens.chunks import Layout, chunk_layout
from speakerlens.signatures import (
    CONVERT,
    HEADER_BYTES,
    SINGLE,
    AudioFileError,
    chunked,
    header_name,
    is_adts,
    is_mpeg,
    mpeg_frame_bytes,
    mpeg_start,
    other_audio,
    unreadable,
)

SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp2 .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc".split()
)
"""Suffixes of audio files."""
FFMPEG_SUFFIXES = frozenset(".m4a .m4b .mp4 .mov .3gp .aac .webm .mka .mkv .amr .wma .asf".split())
"""Those of files that the extra `formats` adds."""

_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x03\x06\x07]", re.DOTALL)
_STREAMINFO = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22", re.DOTALL)
_RIFF_WAVE = re.compile(rb"RIFF.{4}WAVE", re.DOTALL)
# A first frame of MP3 that counts the frames, and where in the frame the count may be (MPEG 1 and 2, stereo and mono).
_COUNTS = (re.compile(rb"Xing\0\0\0[\0-\x0f]"), re.compile(rb"Info\0\0\0[\0-\x0f]"), re.compile(rb"VBRI\x00\x01"))
_COUNT_PLACES = (13, 21, 36)
_OGG_OTHERS = ((b"Speex   ", "Speex"), (b"\x80theora", "Theora video"), (b"fishead\0", "Skeleton"))
_MAX_BLOCKS = 10_000
_MAX_TAGS = 10
_STREAMINFO_BYTES = 34
_MAGIC_BYTES = 40
_ID3V1_BYTES = 128
_NIST_BYTES = 1_024
# What is assumed of files whose header does not say it.
_USUAL_RATE = 16_000
_SELDOM_COMPRESSED = ("WAV", "RF64", "W64", "AIFF", "CAF", "AU", "NIST", "VOC")
_PCM_BYTES_PER_SECOND, _COMPRESSED_BYTES_PER_SECOND = 32_000, 8_000


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
    if chunked(data[:_MAGIC_BYTES]) in ("WAV", "RF64"):
        at = data.find(b"fmt ", 12, 2**16)
        if at > 0 and at + 20 <= len(data):
            channels, rate, bytes_per_second = struct.unpack_from("<HII", data, at + 10)
            if bytes_per_second and 4_000 <= rate <= 192_000 and 1 <= channels <= 8:
                # Not less than 64-bit samples would be, whatever the header says.
                frames = max(rate * len(data) / bytes_per_second, len(data) / (8 * channels))
                return Extent("WAV", frames, rate, channels)
    container = header_name(data[:HEADER_BYTES]) or "MP3"
    compressed = container not in _SELDOM_COMPRESSED
    seconds = len(data) / (_COMPRESSED_BYTES_PER_SECOND if compressed else _PCM_BYTES_PER_SECOND)
    return Extent(container, seconds * _USUAL_RATE, _USUAL_RATE, 1)


def layout(data: memoryview) -> Layout:
    """Return what a decoder may see of a file.

    Raises:
        AudioFileError: the container is not one that is read, or its structure is damaged.
    """
    start = _tags_end(data)
    body = data[start:]
    magic = bytes(body[:_MAGIC_BYTES])
    if kind := chunked(magic):
        found = chunk_layout(body, kind)
        found.samples += start
        found.start, found.end = start, start + found.end
        return found
    # Decoders of FLAC and MP3 know the tag, and MP3 may need its length.
    for beginning, container in SINGLE.items():
        if magic.startswith(beginning):
            return _CHECKS[container](body) or Layout(container, 0 if container == "FLAC" else start, len(data))
    if is_adts(magic):
        return ffmpeg_layout("AAC", "aac", len(data))
    if is_mpeg(magic):
        return _mp3_layout(data, start)
    if start:
        raise AudioFileError(f"damaged MP3: after its ID3 tag, no audio at byte {start:,}")
    if (other := other_audio(bytes(data[:HEADER_BYTES]))) and other[1]:
        return ffmpeg_layout(*other, len(data))
    if middle := mpeg_start(bytes(data[: 4 * HEADER_BYTES])):
        return Layout("MP3", middle, len(data))
    raise unreadable(data)


def ffmpeg_layout(name: str, demuxer: str, size: int) -> Layout:
    """Return the layout of a file that FFmpeg reads whole.

    Raises:
        AudioFileError: PyAV is not installed; says how to convert the file.
    """
    if not has_ffmpeg():
        raise AudioFileError(f"{name} audio, which is read only with the extra `formats` installed; {CONVERT}")
    return Layout(name, 0, size, demuxer=demuxer)


@cache
def has_ffmpeg() -> bool:
    """Return whether PyAV, which holds FFmpeg, is installed."""
    return importlib.util.find_spec("av") is not None


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


def _check_flac(data: memoryview) -> Layout | None:
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
            break
    else:
        raise AudioFileError(f"damaged FLAC: it has more than {_MAX_BLOCKS:,} metadata blocks")
    _check_one(data, at, "FLAC")
    end = len(data)
    if end - at > _ID3V1_BYTES and bytes(data[end - _ID3V1_BYTES :][:3]) == b"TAG":
        return Layout("FLAC", 0, end - _ID3V1_BYTES)  # the decoder would take the tag for a damaged frame
    return None


def _mp3_layout(data: memoryview, start: int) -> Layout:
    """Check an MP3 file whose first frame begins at `start`.

    A decoder ends after as many frames as the first one counts, so a second file after it would be lost.
    """
    first = mpeg_frame_bytes(data[start : start + 4])
    for count in _COUNTS:
        for found in count.finditer(data, start + first):
            for place in _COUNT_PLACES:
                at = found.start() - place
                if at >= start + first and mpeg_frame_bytes(data[at : at + 4]):
                    raise AudioFileError(f"two MP3 files in one: another begins at byte {at:,}")
    _check_one(data, start, "MP3")
    return Layout("MP3", 0, len(data))


def _check_one(data: memoryview, at: int, name: str) -> None:
    """Refuse a WAV or FLAC file after the beginning of another file, from `at` on."""
    for header in (_STREAMINFO, _RIFF_WAVE):
        if second := header.search(data, at):
            which = "two FLAC files" if name == "FLAC" and header is _STREAMINFO else "two files"
            after = "" if which == "two FLAC files" else f"after the {name}, "
            raise AudioFileError(f"{which} in one: {after}another begins at byte {second.start():,}")


def _check_ogg(data: memoryview) -> Layout | None:
    """Check an Ogg file; return its layout where libsndfile does not read the coding."""
    first = bytes(data[:512])
    if len(first) < 28 or not _FIRST_PAGE.match(first):
        raise AudioFileError("damaged OGG: it does not begin with the first page of a stream")
    if second := _FIRST_PAGE.search(data, len(b"OggS")):
        raise AudioFileError(
            f"several Ogg streams in one file, the second from byte {second.start():,}: use each as a file of its own"
        )
    payload = first[27 + first[26] :]
    _check_one(data, len(first), "OGG")
    for magic, name in _OGG_OTHERS:
        if payload.startswith(magic):
            return ffmpeg_layout(f"OGG with {name}", "ogg", len(data))
    return None


def _check_au(data: memoryview) -> Layout | None:
    if len(data) < 24:
        raise AudioFileError(f"damaged AU: {len(data)} bytes, less than its header")
    order = ">" if data[0] == ord(".") else "<"
    header, size = struct.unpack_from(f"{order}II", data, 4)
    if not 24 <= header <= len(data):
        raise AudioFileError(f"damaged AU: its header says {header:,} bytes, and the file has {len(data):,}")
    if not size or header + size > len(data):  # never filled in, or more than there is
        return Layout("AU", 0, len(data), [(8, b"\xff" * 4)])
    _check_end(data, header + size, "AU")
    return None


def _check_nist(data: memoryview) -> None:
    size = bytes(data[8:16]).strip()
    if not size.isdigit() or not _NIST_BYTES <= int(size) <= len(data):
        raise AudioFileError(f"damaged NIST SPHERE: its header does not fit into {len(data):,} bytes")
    fields = dict(re.findall(rb"^(\w+) -i (\d{1,12})\s*$", bytes(data[: min(int(size), 65_536)]), re.MULTILINE))
    count, channels, width = (
        int(fields.get(name, 0)) for name in (b"sample_count", b"channel_count", b"sample_n_bytes")
    )
    _check_end(data, int(size) + count * channels * width, "NIST")


def _check_voc(data: memoryview) -> None:
    at = struct.unpack_from("<H", data, 20)[0] if len(data) >= 26 else len(data)
    for _ in range(_MAX_BLOCKS):
        if at + 4 > len(data) or data[at] == 0:
            return _check_end(data, at + 1, "VOC")
        size = int.from_bytes(data[at + 1 : at + 4], "little")
        at += 4 + size
        if at > len(data) and data[at - size - 4] not in (1, 2, 9):
            raise AudioFileError(f"damaged VOC: a block says {size:,} bytes and {len(data) - at + size:,} follow")
    raise AudioFileError(f"damaged VOC: it has more than {_MAX_BLOCKS:,} blocks")


def _check_end(data: memoryview, end: int, name: str) -> None:
    """Refuse another file after the end of one."""
    following = bytes(data[end : end + _MAGIC_BYTES])
    if chunked(following) or following.startswith(tuple(SINGLE)):
        raise AudioFileError(f"two files in one: after the {name}, another begins at byte {end:,}")


_CHECKS: dict[str, Callable[[memoryview], Layout | None]] = {
    "FLAC": _check_flac,
    "OGG": _check_ogg,
    "AU": _check_au,
    "NIST": _check_nist,
    "VOC": _check_voc,
}
