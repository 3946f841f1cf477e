"""Decoding: levels and rates against known signals, and limits that hold before the memory is spent."""

import io
import tracemalloc

import numpy as np
import pytest
import soundfile as sf

from speakerlens.serving.errors import InvalidArgumentError, Reason
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio, decode
from speakerlens.serving.pipeline.samples import AudioInfo, DurationLimit, check_minimum
from tests.serving.harness import voice

MINUTE = DurationLimit(60)


def file(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> EncodedAudio:
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate, format=kind, subtype=subtype)
    return EncodedAudio(buffer.getvalue())


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "FLOAT", 0),
        ("FLAC", "PCM_16", 2**-15),
        ("AIFF", "PCM_16", 2**-15),
        ("AU", "ULAW", 0.03),
        ("W64", "PCM_32", 2**-23),
    ],
)
def test_full_scale_is_one_in_every_format(kind: str, subtype: str, tolerance: float) -> None:
    samples = voice(1.0) * 0.9 / np.abs(voice(1.0)).max()
    decoded = decode(file(samples, 16_000, kind, subtype), MINUTE).samples
    np.testing.assert_allclose(decoded, samples, atol=tolerance + 1e-9)


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_resampling_keeps_time_pitch_and_level(rate: int) -> None:
    time_s = np.arange(rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * time_s)
    waveform = decode(file(tone, rate, subtype="FLOAT"), MINUTE)
    assert waveform.info == AudioInfo(1.0, rate, 1)
    assert abs(len(waveform.samples) - 16_000) <= 1
    inner = slice(1600, -1600)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(waveform.samples)) / 16_000)
    np.testing.assert_allclose(waveform.samples[inner], expected[inner], atol=2e-3)


def test_channels_are_averaged_and_blocks_joined() -> None:
    """Longer than a block, so that a lost or doubled frame at a seam would show."""
    channels = np.stack([voice(12.0, seed=seed) for seed in range(3)], axis=1)
    decoded = decode(file(channels, 16_000, subtype="FLOAT"), MINUTE)
    np.testing.assert_allclose(decoded.samples, channels.mean(axis=1), atol=1e-7)
    raw = decode(RawAudio(channels.astype("<f4").tobytes(), "float32", 16_000, 3), MINUTE)
    np.testing.assert_array_equal(raw.samples, decoded.samples)


def test_cancelling_channels_are_refused_as_silent() -> None:
    for channels, words in ((1, "silent: no sound"), (2, "silent after averaging the 2 channels: no sound")):
        samples = np.stack([voice(1.0), -voice(1.0)], axis=1) if channels == 2 else np.zeros(16_000)
        flat = RawAudio(samples.astype("<f4").tobytes(), "float32", 16_000, channels)
        for audio in (file(samples, 16_000, subtype="FLOAT"), flat):
            with pytest.raises(InvalidArgumentError, match=words):
                decode(audio, MINUTE)


def test_decompression_bomb_is_refused_without_unpacking() -> None:
    """Ten hours of FLAC silence are some hundred kilobytes; a header that denies its length does not help it."""
    silence = file(np.zeros(600 * 16_000, np.int16), 16_000, "FLAC")
    unknown = bytearray(silence.data)
    unknown[18:26] = (int.from_bytes(unknown[18:26], "big") & ~(2**36 - 1)).to_bytes(8, "big")
    for data in (silence.data, bytes(unknown)):
        tracemalloc.start()
        try:
            with pytest.raises(InvalidArgumentError) as caught:
                decode(EncodedAudio(data), DurationLimit(5))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert caught.value.reason is Reason.TOO_LONG
        assert peak < 4e6, "600 s would be 38 MB"


def test_length_times_rate_times_channels_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the header, which may lie: 350 s of 8 channels at 192 kHz; or while decoding, where the header is silent."""
    data = bytearray(file(np.zeros((20_000, 8), np.int16), 192_000, "FLAC").data)
    form = int.from_bytes(data[18:26], "big") & ~(2**36 - 1)
    data[18:26] = (form | 350 * 192_000).to_bytes(8, "big")
    words = r"350\.0 s of 8 channel\(s\) at 192000 Hz; at most 349 s of this form are accepted \(536,870,912 samples"
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        decode(EncodedAudio(bytes(data)), DurationLimit(600))
    assert caught.value.reason is Reason.TOO_LONG
    data[18:26] = form.to_bytes(8, "big")
    monkeypatch.setattr("speakerlens.serving.pipeline.decode.MAX_DECODED_SAMPLES", 100_000)
    with pytest.raises(InvalidArgumentError, match="at 192000 Hz; at most 0 s of this form"):
        decode(EncodedAudio(bytes(data)), DurationLimit(600))


@pytest.mark.parametrize(
    ("kind", "name"), [("MP3", "MP3"), ("OGG", "OGG"), ("AIFF", "AIFF"), ("AU", "AU"), ("CAF", "CAF")]
)
def test_other_files_sent_as_raw_samples_are_refused(kind: str, name: str) -> None:
    for rate in (16_000, 44_100):
        data = file(voice(1.0, rate), rate, kind).data
        with pytest.raises(InvalidArgumentError, match=f"a whole {name} file, where samples"):
            decode(RawAudio(data[: len(data) // 4 * 4], "int16", 16_000, 1), MINUTE)


def test_pages_and_archives_sent_as_raw_samples_are_refused() -> None:
    for start, words in (
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\0\0\0\x18ftypM4A \0\0\0\0", "a whole M4A file"),
        (b"\x1a\x45\xdf\xa3", "a whole WebM or Matroska file"),
    ):
        data = start + voice(1.0).tobytes()
        with pytest.raises(InvalidArgumentError, match=words):
            decode(RawAudio(data[: len(data) // 4 * 4], "int16", 16_000, 1), MINUTE)


def test_container_is_checked_before_it_is_decoded() -> None:
    """The first makes libsndfile loop without end."""
    wave = file(voice(1.0), 16_000).data
    tags = b"LIST\x0c\x00\x00\x00INFOIZZZ\xf8\xff\xff\xff"
    for data, words in (
        (wave[:36] + tags + wave[36:], "audio.encoded: damaged WAV: in its chunk 'LIST' at byte 36, 'IZZZ' says"),
        (b"<html><body>Sign in</body></html>", "audio.encoded: an HTML page, not audio"),
        (bytes(100_000), "audio.encoded: 100,000 zero bytes and nothing else"),
    ):
        with pytest.raises(InvalidArgumentError, match=words) as caught:
            decode(EncodedAudio(data), MINUTE)
        assert caught.value.reason is Reason.NOT_AUDIO


@pytest.mark.parametrize(("kind", "name"), [("WAV", "WAV"), ("RF64", "RF64"), ("W64", "W64"), ("FLAC", "FLAC")])
def test_file_sent_as_raw_samples_is_refused(kind: str, name: str) -> None:
    for channels in (1, 2):
        data = file(np.stack([voice(1.0)] * 2, 1), 16_000, kind).data
        data = data[: len(data) // 4 * 4]
        with pytest.raises(InvalidArgumentError, match=f"audio.raw.samples: a whole {name} file, where samples"):
            decode(RawAudio(data, "int16", 16_000, channels), MINUTE)


def test_int16_samples_have_full_scale_32768() -> None:
    values = np.array([[-32768, -32768], [16384, 0], [0, 0], [32767, 32767]] * 4000, "<i2")
    decoded = decode(RawAudio(values.tobytes(), "int16", 16_000, 2), MINUTE).samples
    np.testing.assert_allclose(decoded[:4], [-1, 0.25, 0, 32767 / 32768])


def test_minimum_is_counted_at_16_khz() -> None:
    waveform = decode(file(voice(1.0, 8_000), 8_000), MINUTE)
    check_minimum(waveform.info, len(waveform.samples), 16_000)
    with pytest.raises(InvalidArgumentError, match=r"1\.000 s long; the shortest accepted is 1\.250 s"):
        check_minimum(waveform.info, len(waveform.samples), 20_000)
