"""Formats that FFmpeg reads (the extra `formats`): written by PyAV, and read as they were written."""

import io
import struct
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
import pytest
import soundfile as sf

from speakerlens import containers
from speakerlens.decoding import AudioFileError, open_audio
from tests.serving.harness import talk

SECONDS = 2.0
# By name: FFmpeg's container and coding, rate, channels, what the reader calls the container.
WRITTEN: Mapping[str, tuple[str, str, int, int, str]] = {
    "aac in mp4": ("mp4", "aac", 44_100, 2, "MP4"),
    "aac in m4a": ("ipod", "aac", 16_000, 1, "M4A"),
    "aac in mov": ("mov", "aac", 48_000, 1, "QuickTime"),
    "aac in 3gp": ("3gp", "aac", 16_000, 1, "3GP"),
    "alac in m4a": ("ipod", "alac", 16_000, 1, "M4A"),
    "opus in mp4": ("mp4", "libopus", 48_000, 1, "MP4"),
    "aac": ("adts", "aac", 16_000, 1, "AAC"),
    "opus in webm": ("webm", "libopus", 48_000, 2, "WebM or Matroska"),
    "mp3 in matroska": ("matroska", "libmp3lame", 44_100, 1, "WebM or Matroska"),
    "pcm in matroska": ("matroska", "pcm_s16le", 16_000, 1, "WebM or Matroska"),
    "wma": ("asf", "wmav2", 44_100, 1, "WMA or ASF"),
    "wma 1": ("asf", "wmav1", 16_000, 2, "WMA or ASF"),
    "amr": ("amr", "libopencore_amrnb", 8_000, 1, "AMR"),
    "wavpack": ("wv", "wavpack", 16_000, 1, "WavPack"),
    "true audio": ("tta", "tta", 16_000, 1, "True Audio"),
    "mp3 in avi": ("avi", "libmp3lame", 16_000, 1, "AVI"),
    "aac in flv": ("flv", "aac", 44_100, 1, "FLV"),
}
BITS = {"libopencore_amrnb": 12_200}
LOSSLESS = ("alac in m4a", "pcm in matroska", "wavpack")


def written(name: str) -> bytes:
    """A file of a kind; skips the test where this build of PyAV cannot write it."""
    container, coding, rate, channels, _ = WRITTEN[name]
    buffer = io.BytesIO()
    buffer.name = "audio"
    samples = np.rint(0.5 * 32767 * np.repeat(talk(SECONDS, rate)[None], channels, axis=0)).astype(np.int16)
    try:
        with av.open(buffer, "w", format=container) as file:
            stream: Any = file.add_stream(coding, rate=rate, layout="stereo" if channels == 2 else "mono")
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples.T.reshape(1, -1)), "s16", "stereo" if channels == 2 else "mono"
            )
            frame.rate = rate
            offered = [form.name for form in stream.codec_context.codec.audio_formats]
            form = next((form for form in ("s16", "s16p", "flt", "fltp") if form in offered), offered[0])
            stream.codec_context.format, stream.bit_rate = form, BITS.get(coding, 64_000)
            resampler = av.AudioResampler(form, stream.codec_context.layout, rate)
            for part in (*resampler.resample(frame), *resampler.resample(None)):
                for packet in stream.encode(part):
                    file.mux(packet)
            for packet in stream.encode(None):
                file.mux(packet)
    except (av.error.FFmpegError, ValueError, KeyError) as error:
        pytest.skip(f"PyAV does not write {name}: {error}")
    return buffer.getvalue()


@pytest.mark.parametrize("name", WRITTEN)
def test_file_of_ffmpeg_is_read_as_it_was_written(name: str) -> None:
    _, _, rate, channels, container = WRITTEN[name]
    with open_audio(written(name)) as file:
        assert (file.container, file.rate, file.channels) == (container, rate, channels)
        samples = file.read()
    assert len(samples) / rate == pytest.approx(SECONDS, abs=0.15)
    expected = 0.5 * talk(SECONDS, rate)
    if name in LOSSLESS:
        np.testing.assert_allclose(samples[: len(expected), 0], expected, atol=1.01 / 32768)
        return
    # Codecs delay the sound by up to some hundredths of a second, and the narrow ones change its phase.
    spectra = [np.abs(np.fft.rfft(part, 2 * rate)) for part in (samples[:, 0], expected)]
    band = slice(2 * 100, 2 * 1_000)
    assert np.corrcoef(spectra[0][band], spectra[1][band])[0, 1] > 0.7


@pytest.mark.parametrize("name", ["aac in m4a", "opus in webm", "aac", "wma", "amr", "wavpack"])
def test_without_the_extra_the_file_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(name)
    monkeypatch.setattr(containers, "has_ffmpeg", lambda: False)
    with pytest.raises(AudioFileError) as caught:
        open_audio(data)
    sentence = str(caught.value)
    assert WRITTEN[name][4] in sentence
    assert "the extra `formats`" in sentence
    assert "ffmpeg -i FILE -ac 1 -ar 16000 out.wav" in sentence


@pytest.mark.parametrize("name", ["aac in mp4", "opus in webm", "wma", "amr", "aac"])
def test_damaged_file_is_refused_or_read_in_part(name: str) -> None:
    """By a sentence, whatever is damaged, and no worker is lost."""
    data = written(name)
    rng = np.random.default_rng(0)
    for _ in range(8):
        bad = bytearray(data[: rng.integers(20, len(data))])
        for at in rng.integers(0, len(bad), 5):
            bad[at] = rng.integers(256)
        try:
            with open_audio(bytes(bad), expected=1_000) as file:
                assert file.read().ndim == 2
        except AudioFileError as error:
            sentence = str(error)
            assert len(sentence) < 400
            assert "Traceback" not in sentence


def test_part_of_a_file_of_ffmpeg_is_that_of_the_whole() -> None:
    data = written("aac in m4a")
    with open_audio(data) as file:
        samples = file.read()
    with open_audio(data) as file:
        file.seek(7_000)
        np.testing.assert_array_equal(file.read(5_000), samples[7_000:12_000])


def test_opus_in_caf_is_read() -> None:
    """As phones record it; libsndfile reads the container, but not this coding."""
    with av.open(io.BytesIO(written("opus in webm"))) as file:
        assert isinstance(file, av.container.InputContainer)
        packets = [bytes(packet) for packet in file.demux(audio=0) if packet.size]
    sizes = b"".join(bytes([0x80 | len(each) >> 7, len(each) & 0x7F]) for each in packets)
    chunks = (
        (b"desc", struct.pack(">d4s5I", 48_000.0, b"opus", 0, 0, 960, 2, 0)),
        (b"pakt", struct.pack(">qqii", len(packets), 960 * len(packets), 0, 0) + sizes),
        (b"data", bytes(4) + b"".join(packets)),
    )
    data = b"caff\x00\x01\x00\x00" + b"".join(struct.pack(">4sq", name, len(body)) + body for name, body in chunks)
    with open_audio(data) as file:
        assert (file.container, file.encoding, file.rate, file.channels) == ("CAF", "OPUS", 48_000, 2)
        samples = file.read()
    assert len(samples) / 48_000 == pytest.approx(SECONDS, abs=0.05)
    assert np.abs(samples).max() > 0.03


def test_film_without_sound_and_with_two_tracks_are_refused() -> None:
    for tracks, words in ((0, "0 audio tracks"), (2, "2 audio tracks")):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="matroska") as file:
            picture: Any = file.add_stream("mpeg4", rate=25)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
            sounds: list[Any] = [file.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(tracks)]
            for packet in picture.encode(av.VideoFrame(64, 64, "yuv420p")):
                file.mux(packet)
            for sound in sounds:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1_600), np.int16), "s16", "mono")
                frame.rate = 16_000
                for packet in sound.encode(frame):
                    file.mux(packet)
        with pytest.raises(AudioFileError, match=words):
            open_audio(buffer.getvalue())


def test_coding_that_neither_library_reads_is_named() -> None:
    """Not "Format not recognised" alone."""
    buffer = io.BytesIO()
    sf.write(buffer, np.zeros(100), 16_000, format="WAV")
    data = bytearray(buffer.getvalue())
    data[20:22] = b"\x34\x12"
    with pytest.raises(AudioFileError, match=r"^WAV that libsndfile does not read.*; convert it first: ffmpeg"):
        open_audio(bytes(data))
