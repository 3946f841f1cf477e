"""Say what the first bytes of a file are."""

READ = "WAV, RF64, W64, AIFF, CAF, AU, FLAC, OGG, MP3, NIST SPHERE, VOC"
"""The containers that are read."""

_CONVERT = "convert it first: ffmpeg -i FILE -ac 1 -ar 16000 out.wav"
_START = 16
_AUDIO = (
    (0, b"#!AMR", "AMR"),
    (0, b"#!SILK", "SILK"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA or ASF"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"ADIF", "AAC"),
    (0, b"FLV\x01", "FLV"),
    (0, b"DSD ", "DSD"),
    (0, b"BW64", "BW64"),
    (8, b"8SVX", "8SVX"),
    (8, b"AVI ", "AVI"),
)
_BRANDS = {b"M4A ": "M4A", b"M4B ": "M4A", b"qt  ": "QuickTime"}
_PAGE = "an HTML page, not audio: the download went wrong, or needs a login"
_OTHERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer and not the file it stands for: run git lfs pull"),
    (b"PK\x03\x04", "a ZIP archive, not audio"),
    (b"\x1f\x8b", "gzip data, not audio"),
    (b"%PDF", "a PDF document, not audio"),
    (b"\x89PNG", "a PNG picture, not audio"),
    (b"\xff\xd8\xff", "a JPEG picture, not audio"),
    (b"GIF8", "a GIF picture, not audio"),
    (b"MThd", "MIDI notes, not recorded audio"),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"<head", _PAGE),
    (b"<?xml", "an XML document, not audio"),
    (b"<error", "an XML document, not audio"),
)


class AudioFileError(Exception):
    """A file that is not decoded; the message is one sentence that says what it is or what is wrong."""


def quoted(name: bytes) -> str:
    """Return the name of a chunk in quotes, with bytes that are not printable escaped."""
    return repr(name)[1:]


def unreadable(data: memoryview) -> AudioFileError:
    """Return the error for a file in none of the containers that are read; it says what the file is instead."""
    start = bytes(data[:512])
    if name := unread_audio(start) or ("AAC" if _is_adts(start) else None):
        return AudioFileError(f"{name} audio, which is not read; {_CONVERT}")
    if not any(start[:_START]):
        return _zeros(data)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, sentence in _OTHERS:
        if start.startswith(magic) or text.startswith(magic):
            return AudioFileError(sentence)
    return AudioFileError(
        f"not audio in a container that is read ({READ}): begins with the bytes {start[:_START].hex(' ')}"
    )


def unread_audio(start: bytes) -> str | None:
    """Return the name of a kind of audio that is not read, by its header; None for all others."""
    for offset, magic, name in _AUDIO:
        if start.startswith(magic, offset):
            return name
    if start[4:8] in (b"ftyp", b"moof", b"styp"):
        return _BRANDS.get(start[8:12], "MP4")
    return None


def _is_adts(start: bytes) -> bool:
    return len(start) > 1 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0


def _zeros(data: memoryview) -> AudioFileError:
    """Return the error for a file that begins with zeros."""
    block = 65_536
    for at in range(0, len(data), block):
        part = bytes(data[at : at + block])
        if any(part):
            first = at + len(part) - len(part.lstrip(b"\0"))
            return AudioFileError(f"not audio in a container that is read ({READ}): begins with {first:,} zero bytes")
    return AudioFileError(f"{len(data):,} zero bytes and nothing else: the file was never written, or lost its content")
