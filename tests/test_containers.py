"""Containers of audio: what is refused before a decoder sees it, and what a decoder is shown."""

import base64
import io
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from speakerlens.containers import extent, layout
from speakerlens.decoding import AudioFileError, open_audio
from speakerlens.signatures import HEADER_BYTES, header_name
from tests.conftest import ROOT
from tests.serving.fuzz.chunks import LIES, SAMPLES, STYLES, file_of, needed
from tests.serving.fuzz.files import FORMS, whole

WAV = STYLES["WAV"]
FORM_OF = {
    "WAV": ("WAV", "PCM_16", 16_000, 1),
    "FLAC": ("FLAC", "PCM_16", 16_000, 1),
    "OGG": ("OGG", "VORBIS", 16_000, 1),
    "MP3": ("MP3", "MPEG_LAYER_III", 44_100, 1),
}
READER = """
import sys
from speakerlens.decoding import AudioFileError, open_audio
for path in sys.argv[1:]:
    try:
        with open_audio(path) as file:
            print(len(file.read()))
    except AudioFileError as error:
        print(error)
"""


def made(kind: str, *more: bytes, at: int | None = None) -> bytes:
    """A file of a kind, with more chunks at a place."""
    chunks = [STYLES[kind].chunk(name, body, None) for name, body in needed(kind)]
    place = len(chunks) if at is None else at
    return file_of(kind, [*chunks[:place], *more, *chunks[place:]])


def info(size: int, kind: bytes = b"INFO", name: bytes = b"IZZZ") -> bytes:
    """A LIST chunk with a sub-chunk of no bytes that says `size`."""
    return WAV.chunk(b"LIST", kind + struct.pack("<4sI", name, size), None)


def samples(data: bytes) -> np.ndarray:
    with open_audio(data) as file:
        return np.rint(file.read()[:, 0] * 32768).astype(np.int16)


def shown(data: bytes) -> bytes:
    """What a decoder sees of a file."""
    found = layout(memoryview(data))
    seen = bytearray(data[found.start : found.end])
    for at, patch in found.patches:
        seen[at : at + len(patch)] = patch
    return bytes(seen)


def refusal(data: bytes) -> str:
    with pytest.raises(AudioFileError) as caught:
        open_audio(data)
    return str(caught.value)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("kind", [b"INFO", b"adtl", b"exif", b"zzzz"])
def test_nested_chunk_past_its_parent_is_refused(kind: bytes, at: int) -> None:
    for size in LIES:
        if not size:
            continue
        sentence = refusal(made("WAV", info(size, kind), at=at))
        assert sentence.startswith("damaged WAV: in its chunk 'LIST' at byte ")
        assert sentence.endswith(f"'IZZZ' says {size:,} bytes and 0 follow")


def test_file_that_hangs_libsndfile_ends_at_once(tmp_path: Path) -> None:
    """In a process, as a hang in libsndfile cannot be interrupted."""
    paths = []
    for number, size in enumerate((0xFFFF_FFF8, 0xFFFF_FFF0, 0xFFFF_FFF9, 0)):
        for at in (1, 2):
            paths.append(tmp_path / f"{number}-{at}.wav")
            paths[-1].write_bytes(made("WAV", info(size), at=at))
    command = [sys.executable, "-c", READER, *map(str, paths)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT, check=True).stdout.split("\n")
    assert all("'LIST'" in line for line in found[:6])
    assert found[6:8] == [str(len(SAMPLES))] * 2, "a sub-chunk of no bytes is sound"


def test_list_chunk_of_other_containers_is_not_parsed() -> None:
    """Its form is that of RIFF; sizes of 64 bits may be negative."""
    for kind in ("CAF", "W64"):
        body = b"INFO" + STYLES[kind].chunk(b"ISFT", b"", -8)
        np.testing.assert_array_equal(samples(made(kind, STYLES[kind].chunk(b"LIST", body, None), at=1)), SAMPLES)


def test_refusal_takes_no_time() -> None:
    attacks = [
        made("WAV", info(0xFFFF_FFF8)),
        made("WAV", WAV.chunk(b"JUNK", b"", None) * 100_000, at=1),
        made("WAV", WAV.chunk(b"LIST", b"INFO" + WAV.chunk(b"ISFT", b"", None) * 100_000, None)),
        b"fLaC\x00\x00\x00\x22" + bytes(34) + b"\x01\x00\x00\x00" * 100_000,
        b"Creative Voice File\x1a\x1a\x00" + bytes(4) + b"\x05\x00\x00\x00" * 100_000,
        b"ID3\x04\x00\x00\x00\x00\x00\x00" * 100_000,
    ]
    for data in attacks:
        refusal(data)
        start = time.process_time()
        refusal(data)
        assert time.process_time() - start < 0.1


@pytest.mark.parametrize(("kind", "name"), [(k, needed(k)[-1][0]) for k in STYLES])
def test_chunk_that_does_not_fit_is_refused(kind: str, name: bytes) -> None:
    lies = [size for size in STYLES[kind].lies() if size < 0 or size > 10_000]
    for size in lies:
        sentence = refusal(made(kind, STYLES[kind].chunk(b"free", b"", size), at=1))
        assert f"damaged {'WAV' if kind == 'RIFX' else kind}: at byte" in sentence, name


@pytest.mark.parametrize("kind", STYLES)
def test_metadata_is_hidden_and_samples_are_the_same(kind: str) -> None:
    style = STYLES[kind]
    family = {"AIFF": b"ANNO", "CAF": b"info"}.get(kind, b"bext")
    plain = made(kind)
    for body in (b"x" * 7, bytes(602), b"\xff" * 1_000):
        chunk = style.chunk(family, body, None)
        for data in (made(kind, chunk, at=1), made(kind, chunk), made(kind, chunk, chunk, at=1) + chunk):
            np.testing.assert_array_equal(samples(data), SAMPLES)
            assert family not in shown(data)[: len(data) - len(plain)]


@pytest.mark.parametrize(
    "tail", [b"garbage", b"\xff" * 99, b"LIST\xf8\xff\xff\xffINFOIZZZ\xf8\xff\xff\xff", bytes(1_000)]
)
def test_what_follows_the_samples_is_cut_off(tail: bytes) -> None:
    for kind in STYLES:
        data = made(kind)
        assert not shown(data + tail).endswith(tail[:7])
        np.testing.assert_array_equal(samples(data + tail), SAMPLES)


@pytest.mark.parametrize("kind", STYLES)
def test_size_never_filled_in_is_taken_from_the_file(kind: str) -> None:
    style = STYLES[kind]
    chunks = [style.chunk(name, body, None) for name, body in needed(kind)]
    name, body = needed(kind)[-1]
    sizes = {"CAF": (0, -1), "W64": (24, 2**63 - 1), "RF64": (0xFFFF_FFFF,)}.get(kind, (0, 0x7FFF_F000, 0xFFFF_FFFF))
    for size in sizes:
        chunks[-1] = style.chunk(name, body, size)
        if kind == "RF64":
            chunks[0] = style.chunk(b"ds64", bytes(28), None)
        np.testing.assert_array_equal(samples(file_of(kind, chunks)), SAMPLES)


def test_two_files_or_two_samples_in_one_are_refused() -> None:
    for kind in STYLES:
        assert " in one: another begins at byte " in refusal(made(kind) + made(kind)) or kind == "CAF"
        name, body = needed(kind)[-1]
        assert "it has two chunks" in refusal(made(kind, STYLES[kind].chunk(name, body, None)))
    streams = [data for data, form in zip(whole(), FORMS, strict=True) if form[0] == "OGG"]
    for stream in streams:
        assert refusal(stream * 2).startswith(
            f"several Ogg streams in one file, the second from byte {len(stream):,}: "
        )


def test_format_after_the_samples_is_refused() -> None:
    chunks = [WAV.chunk(name, body, None) for name, body in needed("WAV")]
    assert refusal(file_of("WAV", chunks[::-1])) == "damaged WAV: the chunk 'data' comes before that of the format"
    big = [STYLES["AIFF"].chunk(name, body, None) for name, body in needed("AIFF")]
    np.testing.assert_array_equal(samples(file_of("AIFF", big[::-1])), SAMPLES)


def test_id3_tag_before_a_wav_is_passed_over() -> None:
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
    np.testing.assert_array_equal(samples(tag + made("WAV")), SAMPLES)
    assert "ID3 tag says 138 bytes" in refusal(tag[:100])
    assert refusal(tag + bytes(50)) == "damaged MP3: after its ID3 tag, no audio at byte 138"


def test_mp3_that_begins_within_a_frame_is_read() -> None:
    """As a recorder of a stream writes it; noise that holds a single frame is none."""
    data = whole()[FORMS.index(("MP3", "MPEG_LAYER_III", 44_100, 1))]
    with open_audio(data) as file:
        length = len(file.read())
    with open_audio(data[600:]) as file:
        assert (file.container, file.rate) == ("MP3", 44_100)
        assert abs(len(file.read()) - length) < 4 * 1152
    assert "not audio in a container" in refusal(bytes([1, 2, 3]) * 200 + data[:500] + bytes([4, 5]) * 800)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error/>", "an XML document"),
        (bytes(70_000), "70,000 zero bytes and nothing else"),
        (bytes(64) + b"RIFF", "begins with 64 zero bytes"),
        (b"\x00\x00\x00\x20ftypM4A ", "M4A audio"),
        (b"\x00\x00\x00\x20ftypisom", "MP4 audio"),
        (b"\x1a\x45\xdf\xa3\x01", "WebM or Matroska audio"),
        (b"#!AMR\n\x3c", "AMR audio"),
        (b"\xff\xf1\x50\x80\x02\x1f", "AAC audio"),
        (b"wvpk\x00\x00", "WavPack audio"),
        (b"PK\x03\x04\x14", "a ZIP archive"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "AVI audio"),
        (b"\x03\x00\xfe\xff", "begins with the bytes 03 00 fe ff"),
        (b"FORM\x00\x00\x00\x008SVXVHDR", "8SVX audio"),
        (b"2BIT" + bytes(200), "not audio in a container that is read"),
        (b"OggS\x00\x02" + bytes(20) + b"\x01\x50Speex   ", "OGG with Speex"),
        (b".snd\xff\xff\xff\xff" + bytes(20), "its header says 4,294,967,295 bytes"),
        (b"NIST_1A\n 99999\n", "its header does not fit"),
        (b"fLaC\x00\x00\x00\x22" + bytes(34) + b"\x84\xff\xff\xff", "a metadata block says 16,777,215 bytes"),
        (b"R", "begins with the bytes 52"),
    ],
)
def test_other_bytes_are_named_for_what_they_are(data: bytes, words: str) -> None:
    sentence = refusal(data)
    assert words in sentence
    assert "\n" not in sentence


def test_every_form_is_read_as_without_the_check(tmp_path: Path) -> None:
    for data, form in zip(whole(), FORMS, strict=True):
        expected, rate = sf.read(io.BytesIO(data), dtype="float32")
        path = tmp_path / "file"
        path.write_bytes(data)
        for source in (data, path):
            with open_audio(source) as file:
                assert (file.rate, file.container) == (rate, form[0] if form[0] != "WAVEX" else "WAV")
                np.testing.assert_array_equal(np.squeeze(file.read()), expected)


def test_file_on_disk_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(made("WAV"))
    os.truncate(path, 10_000_000_000)  # of which no block is on the disk
    with open_audio(path) as file:
        assert file.frames == len(SAMPLES)


def test_empty_file_and_pipe(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioFileError, match="empty"):
        open_audio(tmp_path / "empty.wav")
    pipe = [sys.executable, "-c", READER, "/dev/stdin"]
    found = subprocess.run(pipe, input=made("WAV"), capture_output=True, timeout=30, cwd=ROOT, check=True)
    assert int(found.stdout) == len(SAMPLES)


def test_header_is_named_by_its_first_bytes() -> None:
    for data, form in zip(whole(), FORMS, strict=True):
        name = {"WAVEX": "WAV"}.get(form[0], form[0])
        assert header_name(data[:HEADER_BYTES]) == name, form
    assert header_name(b"ID3\x04\x00\x00") == "MP3"
    assert header_name(b"\x00\x00\x00\x20ftypM4A ") == "M4A"
    rng = np.random.default_rng(0)
    for amplitude in (1, 30, 3_000, 30_000):
        for _ in range(2_000):
            assert header_name(rng.integers(-amplitude, amplitude + 1, 6).astype("<i2").tobytes()) is None
    assert [header_name(bytes(size)) for size in (0, 3, HEADER_BYTES)] == [None] * 3


def test_second_file_after_one_of_another_kind_is_refused() -> None:
    """A decoder would end with the first one."""
    files = {kind: whole()[FORMS.index(form)] for kind, form in FORM_OF.items()}
    mp3 = files["MP3"]
    assert refusal(mp3 * 2).endswith(f"two MP3 files in one: another begins at byte {len(mp3):,}")
    for kind, data in files.items():
        for other in ("FLAC", "WAV") if kind != "WAV" else ("FLAC", "OGG"):
            assert f"another begins at byte {len(data):,}" in refusal(data + files[other]), (kind, other)


def test_tags_around_a_file_are_passed_over() -> None:
    flac, ogg = (whole()[FORMS.index(FORM_OF[kind])] for kind in ("FLAC", "OGG"))
    np.testing.assert_array_equal(samples(flac + b"TAG" + bytes(125)), samples(flac))
    np.testing.assert_array_equal(samples(b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10) + ogg), samples(ogg))


def test_size_of_au_never_filled_in_is_taken_from_the_file() -> None:
    big = SAMPLES.astype(">i2").tobytes()
    for size in (0, 2**31, 2**32 - 1):
        np.testing.assert_array_equal(samples(b".snd" + struct.pack(">5I", 24, size, 3, 16_000, 1) + big), SAMPLES)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (struct.pack("<HHIIH", 1, 1, 16_000, 32_000, 2), "has 14 bytes, not 16 or more"),
        (struct.pack("<HHIIHH", 1, 0, 16_000, 32_000, 2, 16), "says 0 channels"),
        (struct.pack("<HHIIHH", 1, 1, 0, 0, 2, 16), "and 0 Hz"),
        *((struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, bits), f"says {bits} bits") for bits in (0, 4, 20, 24)),
    ],
)
def test_format_of_a_wav_that_contradicts_itself_is_refused(form: bytes, words: str) -> None:
    """A decoder would read the samples as others."""
    chunks = [WAV.chunk(b"fmt ", form, None), WAV.chunk(b"data", SAMPLES.tobytes(), None)]
    assert words in refusal(file_of("WAV", chunks))


def test_file_in_the_samples_of_a_wav_is_refused() -> None:
    """As programs write that take any bytes for samples."""
    for kind, form in FORM_OF.items():
        inner = whole()[FORMS.index(form)]
        chunks = [WAV.chunk(b"fmt ", needed("WAV")[0][1], None), WAV.chunk(b"data", inner, None)]
        assert f"a whole {kind} file" in refusal(file_of("WAV", chunks))


def test_bw64_is_read_as_rf64() -> None:
    np.testing.assert_array_equal(samples(b"BW64" + made("RF64")[4:]), SAMPLES)
    assert shown(b"BW64" + made("RF64")[4:]).startswith(b"RF64")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (base64.b64encode(b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(99)), "base64 text"),
        (b"data:audio/ogg;base64," + base64.b64encode(b"OggS\x00\x02" + bytes(99)), "base64 text"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(99), "'WEBP'"),
        (b"\x00\x00\x00\x20ftypheic" + bytes(99), "a HEIF picture"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\n\r\n\xff\xfe", "the text 'HTTP/1.1 200 OK"),
        (b"OFR \x0f\x00\x00\x00" + bytes(99), "OptimFROG audio"),
    ],
)
def test_more_bytes_are_named_for_what_they_are(data: bytes, words: str) -> None:
    assert words in refusal(data)


@pytest.mark.parametrize("before", [b"", b"\r\n", bytes(4), b"--form\r\nContent-Type: audio/wav\r\n\r\n"])
def test_header_behind_other_bytes_is_named(before: bytes) -> None:
    for kind, form in FORM_OF.items():
        if kind != "MP3":
            assert header_name((before + whole()[FORMS.index(form)])[:HEADER_BYTES]) == kind
    assert header_name(b"\x00\x00\x00\x08wide\x00\x00\x10\x00mdat") == "MP4"
    packet = b"\x47\x40\x11\x10" + bytes(184)
    assert header_name((packet * 11)[:HEADER_BYTES]) == "MPEG transport stream"


def test_no_error_of_a_library_is_passed_on_where_it_is_vague() -> None:
    au = b".snd" + struct.pack(">5I", 24, 4_000, 3, 0, 1) + SAMPLES.tobytes()
    mp3 = whole()[FORMS.index(FORM_OF["MP3"])]
    for data in (au, mp3[:300]):
        sentence = refusal(data)
        for vague in ("Internal error", "SF_INFO", "regular file"):
            assert vague not in sentence


@pytest.mark.parametrize(("kind", "rate", "channels"), [("WAV", 8_000, 2), ("FLAC", 192_000, 3), ("FLAC", 44_100, 1)])
def test_extent_is_what_the_header_says(kind: str, rate: int, channels: int) -> None:
    file = io.BytesIO()
    sf.write(file, np.zeros((rate, channels)), rate, format=kind)
    found = extent(file.getvalue())
    assert (found.container, found.rate, found.channels) == (kind, rate, channels)
    assert found.frames == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(("at", "false"), [(28, 0xFFFF_FFFF), (28, 1), (24, 0), (24, 10**9), (22, 0)])
def test_extent_does_not_believe_a_false_header(at: int, false: int) -> None:
    """Byte rate, rate or channels; the extent is what a call is charged for."""
    file = io.BytesIO()
    sf.write(file, np.zeros((48_000, 1)), 16_000, format="WAV", subtype="PCM_16")
    data = bytearray(file.getvalue())
    struct.pack_into("<H" if at == 22 else "<I", data, at, false)
    found = extent(bytes(data))
    assert found.rate > 0
    assert found.channels > 0
    assert found.frames * found.channels >= 48_000 / 4


@pytest.mark.parametrize("data", [b"", b"RIFF", b"fLaC" + bytes(99), b"OggS" + bytes(8_000), bytes(8_000)])
def test_extent_of_anything_is_an_estimate(data: bytes) -> None:
    found = extent(data)
    assert found.rate > 0
    assert found.channels > 0
    assert 0 <= found.frames <= 2 * found.rate
