"""Say what the first bytes of a file are.

`header_name` is for raw samples, which should have no header; `unreadable` for files in none of the containers that are
read.
"""

import re
from typing import Literal

HEADER_BYTES = 2_048
"""How many of the first bytes `header_name` looks at: enough for two frames of MP3, which has no header."""
READ = "WAV, RF64, W64, AIFF, CAF, AU, FLAC, OGG, MP3, NIST SPHERE, VOC"
"""The containers that are read without further packages."""
CONVERT = "convert it first: ffmpeg -i FILE -ac 1 -ar 16000 out.wav"

Kind = Literal["WAV", "RIFX", "RF64", "AIFF", "CAF", "W64"]
"""Containers that are made of chunks."""

_RIFF: dict[tuple[bytes, bytes], Kind] = {
    (b"RIFF", b"WAVE"): "WAV",
    (b"RIFX", b"WAVE"): "RIFX",
    (b"RF64", b"WAVE"): "RF64",
    (b"BW64", b"WAVE"): "RF64",
    (b"FORM", b"AIFF"): "AIFF",
    (b"FORM", b"AIFC"): "AIFF",
}
_W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_START = 12
SINGLE: dict[bytes, str] = {
    b"fLaC": "FLAC",
    b"OggS": "OGG",
    b".snd": "AU",
    b"dns.": "AU",
    b"NIST_1A\n": "NIST",
    b"Creative Voice File\x1a": "VOC",
}
"""Containers with headers of their own, by how they begin."""
_INNER = ((b"WAVEfmt ", "WAV"), (b"fLaC\x00\x00\x00\x22", "FLAC"), (b"OggS\x00\x02\x00\x00", "OGG"))
"""Headers that are found behind others too: of a form that was uploaded, of blank lines, of a tag."""
_ID3 = re.compile(rb"ID3[\2-\4]")
_START = 16
_AUDIO = (
    (0, b"#!AMR", "AMR", "amr"),
    (0, b"#!SILK", "SILK", ""),
    (1, b"#!SILK", "SILK", ""),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska", "matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA or ASF", "asf"),
    (0, b"wvpk", "WavPack", "wv"),
    (0, b"MAC ", "Monkey's Audio", "ape"),
    (0, b"TTA1", "True Audio", "tta"),
    (0, b"tBaK", "TAK", "tak"),
    (0, b"ADIF", "AAC", ""),
    (0, b"FLV\x01", "FLV", "flv"),
    (0, b"DSD ", "DSD", "dsf"),
    (0, b"FRM8", "DSD", "iff"),
    (0, b".RMF", "RealMedia", "rm"),
    (0, b".ra\xfd", "RealAudio", "rm"),
    (0, b"MPCK", "Musepack", "mpc8"),
    (0, b"MP+", "Musepack", "mpc"),
    (0, b"\x7f\xfe\x80\x01", "DTS", "dts"),
    (0, b"ajkg", "Shorten", "shn"),
    (0, b"OFR ", "OptimFROG", ""),
    (0, b"d\xa3\x01\x00", "IRCAM", ""),
    (0, b"d\xa3\x02\x00", "IRCAM", ""),
    (0, b"\x00\x00\x01\xba", "MPEG", "mpeg"),
    (8, b"8SVX", "8SVX", ""),
    (8, b"AVI ", "AVI", "avi"),
)
_BOXES = (b"ftyp", b"moof", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
"""What a file of the MP4 family may begin with."""
_TS_PACKET, _TS_SYNC = 188, 0x47
_BRANDS = {b"M4A ": "M4A", b"M4B ": "M4A", b"qt  ": "QuickTime", b"3gp": "3GP", b"3g2": "3GP"}
_PAGE = "an HTML page, not audio: the download went wrong, or needs a login"
_OTHERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer and not the file it stands for: run git lfs pull"),
    (b"PK\x03\x04", "a ZIP archive, not audio"),
    (b"\x1f\x8b\x08\x00", "gzip data, not audio: unpack it first"),
    (b"\x1f\x8b\x08\x08", "gzip data, not audio: unpack it first"),
    (b"\x1f\x8b\x08", "gzip data, not audio: unpack it first"),
    (b"BZh", "bzip2 data, not audio: unpack it first"),
    (b"\xfd7zXZ\x00", "xz data, not audio: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive, not audio"),
    (b"Rar!\x1a\x07", "a RAR archive, not audio"),
    (b"%PDF", "a PDF document, not audio"),
    (b"\x89PNG", "a PNG picture, not audio"),
    (b"\xff\xd8\xff\xe0", "a JPEG picture, not audio"),
    (b"\xff\xd8\xff\xe1", "a JPEG picture, not audio"),
    (b"\xff\xd8\xff", "a JPEG picture, not audio"),
    (b"GIF8", "a GIF picture, not audio"),
    (b"MThd", "MIDI notes, not recorded audio"),
    (b"\x93NUMPY", "a NumPy array, not an audio file: send its samples as raw audio"),
    (b"{\\rtf", "an RTF document, not audio"),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"<head", _PAGE),
    (b"<?xml", "an XML document, not audio"),
    (b"<error", "an XML document, not audio"),
    (b"#extm3u", "a playlist, not the audio it lists"),
    (b"[playlist]", "a playlist, not the audio it lists"),
)
_MAGICS = tuple(magic for magic, _ in _OTHERS)
_PICTURES = (b"heic", b"heix", b"mif1", b"msf1", b"avif")
# RIFF, OggS, fLaC, ID3, frames of MP3 and AAC, WebM, MP4.
_BASE64 = re.compile(rb"(?:data:[^,]{0,80},)?(?:UklGR|T2dnUw|ZkxhQ|SUQz|//[sMIoEk]|GkXfo|AAAA[A-Z]GZ0eX)[\w+/=\s-]{32}")
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{16,512}\Z")
_MPEG_KBITS = {
    (3, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates by version (3: MPEG 1, 2: MPEG 2 and 2.5) and layer (3: layer 1, 2: layer 2, 1: layer 3), as coded."""
_MPEG_RATES = (44_100, 48_000, 32_000)


class AudioFileError(Exception):
    """A file that is not decoded; the message is one sentence that says what it is or what is wrong."""


def quoted(name: bytes) -> str:
    """Return the name of a chunk in quotes, with bytes that are not printable escaped."""
    return repr(name)[1:]


def header_name(start: bytes) -> str | None:
    """Return the container whose header raw samples begin with, or None.

    Only what samples do not begin with by chance counts: four bytes and more, or two frames of MP3 or AAC in a row.

    Args:
        start: the first HEADER_BYTES bytes, or all if there are fewer.
    """
    if kind := chunked(start):
        return "WAV" if kind == "RIFX" else kind
    for beginning, container in SINGLE.items():
        if start.startswith(beginning):
            return container
    if inner := next((container for header, container in _INNER if header in start), None):
        return inner
    if found := (_ID3.match(start) and ("MP3", "")) or other_audio(start):
        return found[0]
    for frame_bytes, name in ((mpeg_frame_bytes, "MP3"), (adts_frame_bytes, "AAC")):
        size = frame_bytes(start)
        if size and frame_bytes(start[size:]):
            return name
    return None


def other_content(start: bytes, least: int = 4) -> str | None:
    """Return what bytes are that are no audio, or None.

    Args:
        start: the first bytes.
        least: how many bytes must tell it.
    """
    if start[:4] in (b"RIFF", b"FORM") and start[8:12].isalnum():
        return f"a {start[:4].decode()} file of the form {quoted(start[8:12])}, which is not audio that is read"
    if _BASE64.match(start):
        return "a file as base64 text: decode it first"
    if start[4:8] == b"ftyp" and start[8:12] in _PICTURES:
        return "a HEIF picture, not audio"
    text = start[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not (start.startswith(_MAGICS) or text.startswith(_MAGICS)):  # most are audio, and asked about once a call
        return None
    for magic, sentence in _OTHERS:
        if len(magic) >= least and (start.startswith(magic) or text.startswith(magic)):
            return sentence
    return None


def chunked(start: bytes) -> Kind | None:
    """Return which container of chunks a file begins as, or None."""
    if start[: len(_W64)] == _W64[: len(start)] and len(start) >= _W64_START:
        return "W64"
    if start[:4] == b"caff":
        return "CAF"
    return _RIFF.get((start[:4], start[8:12]))


def other_audio(start: bytes) -> tuple[str, str] | None:
    """Return the name of audio that libsndfile does not read, and FFmpeg's of its container, by its header.

    The latter is empty where FFmpeg does not read it either. None for everything else.
    """
    for offset, magic, name, demuxer in _AUDIO:
        if start.startswith(magic, offset):
            return name, demuxer
    if len(start) > 2 * _TS_PACKET and set(start[::_TS_PACKET]) == {_TS_SYNC} and len(set(start)) > 1:
        return "MPEG transport stream", "mpegts"
    if start[4:8] in _BOXES and start[:2] == b"\0\0" and start[8:12] not in _PICTURES:
        brand = start[8:12]
        return _BRANDS.get(brand) or _BRANDS.get(brand[:3], "MP4"), "mov"
    return None


def mpeg_frame_bytes(start: bytes | memoryview) -> int:
    """Return the length of the MPEG audio frame that begins here; 0 if none does, or it does not say its length."""
    if not is_mpeg(start):
        return 0
    version, layer = start[1] >> 3 & 3, start[1] >> 1 & 3
    kbits = start[2] >> 4
    if not kbits:
        return 0
    rate = _MPEG_RATES[start[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[version]
    bits = 1000 * _MPEG_KBITS[3 if version == 3 else 2, layer][kbits - 1]
    padding = start[2] >> 1 & 1
    if layer == 3:
        return (12 * bits // rate + padding) * 4
    return (72 if layer == 1 and version != 3 else 144) * bits // rate + padding


def is_mpeg(start: bytes | memoryview) -> bool:
    """Return whether bytes are the header of an MPEG audio frame of layer 1, 2 or 3 with allowed numbers."""
    if len(start) < 4 or start[0] != 0xFF or start[1] & 0xE0 != 0xE0:
        return False
    version, layer = start[1] >> 3 & 3, start[1] >> 1 & 3
    return version != 1 and layer != 0 and start[2] >> 4 != 15 and start[2] >> 2 & 3 != 3


def mpeg_start(data: bytes) -> int | None:
    """Return where three MPEG audio frames in a row begin: a stream that was recorded from its middle; None if nowhere.

    Args:
        data: the first bytes.
    """
    for at in range(min(len(data), HEADER_BYTES)):
        if data[at] == 0xFF and (size := mpeg_frame_bytes(data[at : at + 4])):
            after = at + size
            following = mpeg_frame_bytes(data[after : after + 4])
            if following and mpeg_frame_bytes(data[after + following : after + following + 4]):
                return at
    return None


def is_adts(start: bytes | memoryview) -> bool:
    """Return whether bytes begin with the sync word of AAC in ADTS."""
    return len(start) > 1 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0


def adts_frame_bytes(start: bytes | memoryview) -> int:
    """Return the length of the AAC frame with an ADTS header that begins here, or 0."""
    if len(start) < 7 or not is_adts(start) or start[2] >> 2 & 15 > 12:
        return 0
    size = (start[3] & 3) << 11 | start[4] << 3 | start[5] >> 5
    return size if size > 7 else 0


def unreadable(data: memoryview) -> AudioFileError:
    """Return the error for a file in none of the containers that are read; it says what the file is instead."""
    start = bytes(data[:512])
    if found := other_audio(start):
        return AudioFileError(f"{found[0]} audio, which is not read; {CONVERT}")
    if not any(start[:_START]):
        return _zeros(data)
    if sentence := other_content(start, 0):
        return AudioFileError(sentence)
    text = _TEXT.match(start) or _TEXT.match(start[:_START])
    begins = f"the text {quoted(start[:_START])}" if text else f"the bytes {start[:_START].hex(' ')}"
    return AudioFileError(
        f"not audio in a container that is read ({READ}): begins with {begins}; samples without a header are raw audio"
    )


def _zeros(data: memoryview) -> AudioFileError:
    """Return the error for a file that begins with zeros."""
    block = 65_536
    for at in range(0, len(data), block):
        part = bytes(data[at : at + block])
        if any(part):
            first = at + len(part) - len(part.lstrip(b"\0"))
            return AudioFileError(f"not audio in a container that is read ({READ}): begins with {first:,} zero bytes")
    return AudioFileError(f"{len(data):,} zero bytes and nothing else: the file was never written, or lost its content")
