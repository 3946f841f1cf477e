"""Check the chunks of WAV, RF64, W64, AIFF and CAF files, and say what of them a decoder needs.

libsndfile follows sizes inside metadata without checking them against the chunk that holds them, and some sizes make it
loop without end. So a file is walked here first, and a decoder is shown the chunks with format and samples alone: every
other chunk is renamed to one that is skipped, and what follows the samples is cut off.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from speakerlens.signatures import AudioFileError, Kind, quoted

MAX_CHUNKS = 1_000

_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_DS64_BYTES = 28
_DESCRIPTION_BYTES = 64
_FORM_BYTES = 16
_PCM = 1
_STREAMED = 0x7FFF_0000
_STREAMED_WIDE = 2**62
"""Declared sizes, of 32 and 64 bits, that mean "unknown" from here on: ffmpeg writes 0xFFFFFFFF to a pipe, sox
0x7FFFF000."""


@dataclass(frozen=True)
class Form:
    """How a container is made of chunks.

    Attributes:
        name: of the container.
        header: of a chunk, for `struct`: its name and its size in bytes.
        first: offset of the first chunk.
        needed: chunks that a decoder is shown: that of the format, that of the samples, others.
        skipped: the name of a chunk that a decoder skips.
        alignment: of chunks, in bytes.
        inclusive: whether sizes count the header.
        description_first: whether the format must come before the samples.
    """

    name: str
    header: str
    first: int
    needed: tuple[bytes, ...]
    skipped: bytes
    alignment: int = 2
    inclusive: bool = False
    description_first: bool = True


def _w64(name: bytes) -> bytes:
    return name + _W64_TAIL


_WAV_CHUNKS = (b"fmt ", b"data", b"fact")
FORMS: Mapping[str, Form] = {
    "WAV": Form("WAV", "<4sI", 12, _WAV_CHUNKS, b"JUNK"),
    "RIFX": Form("WAV", ">4sI", 12, _WAV_CHUNKS, b"JUNK"),
    "RF64": Form("RF64", "<4sI", 12, (*_WAV_CHUNKS, b"ds64"), b"JUNK"),
    "AIFF": Form("AIFF", ">4sI", 12, (b"COMM", b"SSND", b"FVER"), b"JUNK", description_first=False),
    "CAF": Form("CAF", ">4sq", 8, (b"desc", b"data", b"pakt", b"kuki"), b"free", alignment=1, description_first=False),
    "W64": Form("W64", "<16sq", 40, tuple(map(_w64, _WAV_CHUNKS)), _w64(b"junk"), alignment=8, inclusive=True),
}


@dataclass
class Layout:
    """What a decoder may see of a file.

    Attributes:
        container: its name.
        start, end: of what may be seen, in bytes.
        patches: offset from `start`, and the bytes to be put there.
        description: content of the chunk that holds the format; empty in other containers.
        samples: offset in the file of the first sample, of containers made of chunks.
        held: bytes of samples that are there, where the header promises more; else 0.
        missing: bytes of samples that the header promises besides.
        demuxer: FFmpeg's name of the container; empty if libsndfile reads it.
    """

    container: str
    start: int
    end: int
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    description: bytes = b""
    samples: int = 0
    held: int = 0
    missing: int = 0
    demuxer: str = ""


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    at: int
    body: int
    size: int

    @property
    def end(self) -> int:
        return self.body + self.size


class Walk:
    """Walk the chunks of a file once.

    Args:
        data: the whole file.
        form: of its container.
    """

    def __init__(self, data: memoryview, form: Form) -> None:
        self._data = data
        self._form = form
        self._header = struct.Struct(form.header)
        self._layout = Layout(form.name, 0, 0)
        self._seen: dict[bytes, _Chunk] = {}
        self._count = 0

    def layout(self) -> Layout:
        """Return what a decoder may see.

        Raises:
            AudioFileError: a chunk does not fit, is missing or is there twice, or there are too many.
        """
        description, samples = self._form.needed[:2]
        at = self._form.first
        while at + self._header.size <= len(self._data):
            chunk = self._chunk(at)
            if samples in self._seen:
                self._check_second(chunk)
                if not self._fits(chunk):
                    break  # what follows the samples is not needed
            self._take(chunk, described=description in self._seen)
            if chunk.name == samples and self._layout.end == len(self._data):
                break
            at = chunk.end + -chunk.size % self._form.alignment
        for name, what in ((description, "format"), (samples, "samples")):
            if name not in self._seen:
                raise self._damaged(f"it has no chunk {quoted(name[:4])}, which holds the {what}")
        form = self._seen[description]
        self._layout.description = bytes(self._data[form.body : form.end][:_DESCRIPTION_BYTES])
        self._layout.samples = self._seen[samples].body
        if description[:4] == b"fmt ":
            self._check_form()
        if bytes(self._data[:4]) == b"BW64":  # RF64 by its later name, which libsndfile does not know
            self._layout.patches.append((0, b"RF64"))
        if self._form.name == "W64":
            self._layout.patches.append((16, struct.pack("<q", self._layout.end)))
        self._layout.patches = [(offset, patch) for offset, patch in self._layout.patches if offset < self._layout.end]
        return self._layout

    def _chunk(self, at: int) -> _Chunk:
        self._count += 1
        if self._count > MAX_CHUNKS:
            raise self._damaged(f"it has more than {MAX_CHUNKS:,} chunks")
        name, size = self._header.unpack_from(self._data, at)
        return _Chunk(name, at, at + self._header.size, size - self._header.size if self._form.inclusive else size)

    def _fits(self, chunk: _Chunk) -> bool:
        name = chunk.name[:4]
        return name.isascii() and name.decode("ascii").isprintable() and 0 <= chunk.size <= len(self._data) - chunk.body

    def _take(self, chunk: _Chunk, *, described: bool) -> None:
        """Note a chunk that a decoder needs, and hide any other."""
        if chunk.name == self._form.needed[0] and described:
            raise self._twice(chunk)
        if chunk.name == self._form.needed[1]:
            if self._form.description_first and not described:
                raise self._damaged(f"the chunk {quoted(chunk.name[:4])} comes before that of the format")
            self._layout.end = self._samples_end(chunk)
        elif not self._fits(chunk):
            raise self._misfit(chunk)
        elif chunk.name in self._form.needed and chunk.name not in self._seen:
            if chunk.name == b"ds64" and chunk.size < _DS64_BYTES:
                raise self._damaged(f"its chunk 'ds64' has {chunk.size} bytes, not {_DS64_BYTES} or more")
            self._layout.end = chunk.end
        else:
            if chunk.name == b"LIST" and self._form.header[-1] == "I":
                self._check_list(chunk)
            # With its padding, which libsndfile expects after some chunks only.
            padded = chunk.size + -chunk.size % self._form.alignment + self._header.size * self._form.inclusive
            self._layout.patches.append((chunk.at, self._header.pack(self._form.skipped, padded)))
            return
        self._seen[chunk.name] = chunk

    def _check_second(self, chunk: _Chunk) -> None:
        """Refuse a second file or second samples after the first."""
        if chunk.name[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"caff", b"riff"):
            raise AudioFileError(f"two {self._form.name} files in one: another begins at byte {chunk.at:,}")
        if chunk.name[:4] in (b"fLaC", b"OggS"):
            raise AudioFileError(f"two files in one: after the {self._form.name}, another begins at byte {chunk.at:,}")
        if chunk.name == self._form.needed[1]:
            raise self._twice(chunk)

    def _samples_end(self, chunk: _Chunk) -> int:
        """Return where the samples end; correct a size that was never filled in."""
        size, rest = chunk.size, len(self._data) - chunk.body
        long_size = self._seen.get(b"ds64") if self._form.name == "RF64" else None
        if long_size is not None and size == 0xFFFF_FFFF:
            size = struct.unpack_from("<Q", self._data, long_size.body + 8)[0]
        elif size < 0:
            declared = size + self._header.size * self._form.inclusive
            if self._form.header[-1] != "q" or declared not in (0, -1):
                raise self._misfit(chunk)
            size = 0
        if size == 0xFFFF_FFFF and self._form.header[-1] == "I":  # never filled in, however much follows
            return len(self._data)
        if size > rest:  # the size of a stream, or a file that was cut: a decoder reads to the end
            wide = self._form.header[-1] == "q" or long_size is not None
            if size < (_STREAMED_WIDE if wide else _STREAMED):
                self._layout.held, self._layout.missing = rest, size - rest
            return len(self._data)
        if size or not rest or (rest >= self._header.size and self._fits(self._chunk(chunk.body))):
            return chunk.body + size
        if long_size is not None:
            filled = struct.pack("<QQ", len(self._data) - 8, rest)
            self._layout.patches.append((long_size.body, filled))
        else:
            declared = rest + self._header.size * self._form.inclusive
            if self._form.header[-1] == "I":
                declared = min(declared, 0xFFFF_FFFF)
            self._layout.patches.append((chunk.at, self._header.pack(chunk.name, declared)))
        return len(self._data)

    def _check_form(self) -> None:
        """Check the format of a WAV: a decoder would guess what is missing, and believe the bits for the rest."""
        form = self._layout.description
        if len(form) < _FORM_BYTES:
            raise self._damaged(f"its chunk 'fmt ' has {len(form)} bytes, not {_FORM_BYTES} or more")
        order = ">" if self._form.header[0] == ">" else "<"
        coding, channels, rate, byte_rate, frame_bytes, bits = struct.unpack_from(f"{order}HHIIHH", form)
        if not channels or not rate:
            raise self._damaged(f"its chunk 'fmt ' says {channels} channels and {rate} Hz")
        said = -(-bits // 8) * channels
        wider = bits == 24 and frame_bytes == 4 * channels  # which decoders know
        usual = said == frame_bytes or bits == 16 or wider
        if coding == _PCM and not usual and byte_rate == rate * frame_bytes:
            raise self._damaged(
                f"its chunk 'fmt ' says {bits} bits a sample and {channels} channel(s), and "
                f"{frame_bytes} bytes for all channels"
            )

    def _check_list(self, parent: _Chunk) -> None:
        """Check that the chunks inside a LIST chunk end within it."""
        at = parent.body + 4
        while at + self._header.size <= parent.end:
            chunk = self._chunk(at)
            if not 0 <= chunk.size <= parent.end - chunk.body:
                raise self._damaged(
                    f"in its chunk 'LIST' at byte {parent.at:,}, {quoted(chunk.name)} says {chunk.size:,} bytes and "
                    f"{parent.end - chunk.body:,} follow"
                )
            at = chunk.end + chunk.size % 2

    def _twice(self, chunk: _Chunk) -> AudioFileError:
        return self._damaged(f"it has two chunks {quoted(chunk.name[:4])}, the second at byte {chunk.at:,}")

    def _misfit(self, chunk: _Chunk) -> AudioFileError:
        return self._damaged(
            f"at byte {chunk.at:,}, the chunk {quoted(chunk.name[:4])} says {chunk.size:,} bytes and "
            f"{len(self._data) - chunk.body:,} follow"
        )

    def _damaged(self, reason: str) -> AudioFileError:
        return AudioFileError(f"damaged {self._form.name}: {reason}")


def chunk_layout(data: memoryview, kind: Kind) -> Layout:
    """Return what a decoder may see of a file that is made of chunks.

    Raises:
        AudioFileError: its chunks are not sound; names the first that is not.
    """
    return Walk(data, FORMS[kind]).layout()
