"""Files made of chunks whose sizes, order and nesting are drawn: WAV, RIFX, RF64, AIFF, CAF and W64."""

import struct
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

RATE = 16_000
FRAMES = 2_000
SAMPLES = (8_000 * np.sin(np.arange(FRAMES) / 5)).astype("<i2")
MOST_CHUNKS = 6
MOST_DEPTH = 2
W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")

METADATA = {
    "RIFF": b"LIST bext cue  smpl inst PEAK cart id3  JUNK acid afsp DISP exif levl strc plst labl fact ds64 iXML axml",
    "FORM": b"MARK INST APPL NAME AUTH ANNO (c)  COMT CHAN PEAK basc FVER MIDI bext LIST FORM",
    "caff": b"info chan strg uuid peak free mark regn umid midi kuki pakt LIST",
}
INNER = (b"ISFT", b"INAM", b"ICRD", b"IZZZ", b"labl", b"note", b"ltxt", b"exif", b"ever", b"emdl", b"\0\0\0\0", b"LIST")
LIST_TYPES = (b"INFO", b"adtl", b"exif", b"wavl", b"zzzz")
LIES = (0, 1, 3, 4, 7, 8, 9, 0x7FFF_FFFF, 0x8000_0000, 0xFFFE_FFFF, *range(0xFFFF_FFF0, 0x1_0000_0000))
WIDE_LIES = (-1, -8, -12, -24, -(2**63), 2**63 - 1, 2**32, *LIES)


@dataclass(frozen=True)
class Style:
    """How a container writes the header of a chunk."""

    header: str
    family: str
    alignment: int
    inclusive: bool = False

    def lies(self) -> tuple[int, ...]:
        """Return wrong sizes."""
        return WIDE_LIES if self.header[-1] == "q" else LIES

    def chunk(self, name: bytes, body: bytes, size: int | None) -> bytes:
        """Return a chunk; `size` is what its header says, None the right one."""
        shape = struct.Struct(self.header)
        if size is None:
            size = len(body) + (shape.size if self.inclusive else 0)
        full = name + W64_TAIL if self.inclusive else name
        return shape.pack(full, size) + body + bytes(-len(body) % self.alignment)


STYLES = {
    "WAV": Style("<4sI", "RIFF", 2),
    "RIFX": Style(">4sI", "RIFF", 2),
    "RF64": Style("<4sI", "RIFF", 2),
    "AIFF": Style(">4sI", "FORM", 2),
    "CAF": Style(">4sq", "caff", 1),
    "W64": Style("<16sq", "RIFF", 8, inclusive=True),
}


def preamble(kind: str) -> bytes:
    """Return what comes before the first chunk."""
    return {
        "WAV": b"RIFF\xff\xff\xff\xffWAVE",
        "RIFX": b"RIFX\xff\xff\xff\xffWAVE",
        "RF64": b"RF64\xff\xff\xff\xffWAVE",
        "AIFF": b"FORM\x00\x00\x00\x00AIFF",
        "CAF": b"caff\x00\x01\x00\x00",
        "W64": W64_RIFF + b"\xff" * 7 + b"\x7f" + b"wave" + W64_TAIL,
    }[kind]


def needed(kind: str) -> list[tuple[bytes, bytes]]:
    """Return the names and bodies of the chunks that a decoder needs, in order."""
    big = SAMPLES.astype(">i2").tobytes()
    if kind == "AIFF":
        rate = bytes.fromhex("400cfa00000000000000")
        return [(b"COMM", struct.pack(">hIh", 1, FRAMES, 16) + rate), (b"SSND", bytes(8) + big)]
    if kind == "CAF":
        description = struct.pack(">d4sIIIII", float(RATE), b"lpcm", 0, 2, 1, 1, 16)
        return [(b"desc", description), (b"data", bytes(4) + big)]
    order = ">" if kind == "RIFX" else "<"
    form = struct.pack(f"{order}HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    chunks = [(b"fmt ", form), (b"data", big if kind == "RIFX" else SAMPLES.tobytes())]
    long_sizes = struct.pack("<QQQI", 2 * FRAMES + 80, 2 * FRAMES, FRAMES, 0)
    return [(b"ds64", long_sizes), *chunks] if kind == "RF64" else chunks


def file_of(kind: str, chunks: list[bytes]) -> bytes:
    """Return a file of a kind of these chunks."""
    return preamble(kind) + b"".join(chunks)


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    """A file of chunks, of which some sizes are wrong, some are nested, and the order may be."""
    kind = draw(st.sampled_from(sorted(STYLES)))
    style = STYLES[kind]
    chunks = [style.chunk(name, body, _size(draw, style, 12)) for name, body in needed(kind)]
    for _ in range(draw(st.integers(0, MOST_CHUNKS))):
        chunks.insert(draw(st.integers(0, len(chunks))), _metadata(draw, style, 0))
    if draw(st.integers(0, 9)) == 0:
        chunks = draw(st.permutations(chunks))
    data = file_of(kind, chunks)
    data = data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data
    return draw(st.binary(max_size=4)) + data if draw(st.integers(0, 19)) == 0 else data


def _metadata(draw: st.DrawFn, style: Style, depth: int) -> bytes:
    names = METADATA[style.family]
    places = range(0, len(names), 5)
    name = draw(st.sampled_from([names[at : at + 4] for at in places])) if depth == 0 else draw(st.sampled_from(INNER))
    if depth < MOST_DEPTH and draw(st.booleans()):
        inner = [_metadata(draw, style, depth + 1) for _ in range(draw(st.integers(1, 3)))]
        body = draw(st.sampled_from(LIST_TYPES)) + b"".join(inner)
        name = b"LIST" if draw(st.booleans()) else name
    else:
        body = draw(st.one_of(st.binary(max_size=40), st.just(b"\xff" * 700), st.just(bytes(610))))
    return style.chunk(name, body, _size(draw, style, 3))


def _size(draw: st.DrawFn, style: Style, rarity: int) -> int | None:
    """Return a wrong size once in `rarity` times, else None."""
    return draw(st.sampled_from(style.lies())) if draw(st.integers(1, rarity)) == 1 else None
