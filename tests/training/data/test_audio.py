from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE, measure_audio, read_audio, write_audio
from speakerlens.training.errors import UserError


def tone(frequency: float, seconds: float, rate: int) -> NDArray[np.float64]:
    wave: NDArray[np.float64] = 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return wave


def test_written_audio_is_read_back_within_half_a_step(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, 4321).astype(np.float32)
    write_audio(tmp_path / "a" / "b.flac", samples)
    read = read_audio(tmp_path / "a" / "b.flac")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, samples, atol=1.01 / 2**15)
    assert measure_audio(tmp_path / "a" / "b.flac").seconds == pytest.approx(4321 / SAMPLE_RATE)


def test_overload_is_clipped_and_does_not_wrap(tmp_path: Path) -> None:
    write_audio(tmp_path / "loud.flac", np.array([2.0, -2.0, 0.0], dtype=np.float32))
    np.testing.assert_allclose(read_audio(tmp_path / "loud.flac"), [1.0, -1.0, 0.0], atol=1e-4)


def test_crop_equals_the_slice_of_the_whole_file(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.flac", np.random.default_rng(1).uniform(-0.5, 0.5, 5 * SAMPLE_RATE).astype(np.float32))
    whole = read_audio(tmp_path / "a.flac")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac", 1.25, 2.0), whole[20_000:52_000])
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac", 4.5, 2.0), whole[72_000:])


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_any_rate_is_resampled_to_16_khz(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(440, 2.0, rate), rate, subtype="FLOAT")
    inner = slice(1000, -1000)  # the resampler knows nothing beyond the ends
    whole = read_audio(tmp_path / "a.wav")
    assert abs(len(whole) - 32_000) <= 1
    np.testing.assert_allclose(whole[inner], tone(440, 2.0, 16_000)[: len(whole)][inner], atol=2e-3)
    crop = read_audio(tmp_path / "a.wav", 0.5, 1.0)
    assert len(crop) == 16_000
    np.testing.assert_allclose(crop[inner], tone(440, 2.0, 16_000)[8_000:24_000][inner], atol=2e-3)


def test_channels_are_averaged_or_selected(tmp_path: Path) -> None:
    channels = np.random.default_rng(2).uniform(-0.5, 0.5, (800, 3)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", channels, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), channels.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", channel=1), channels[:, 1])


def test_file_in_which_one_cannot_seek_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(440, 2.0, 8_000), 8_000, subtype="GSM610")
    assert len(read_audio(tmp_path / "a.wav")) == pytest.approx(2 * SAMPLE_RATE, abs=640)
    assert len(read_audio(tmp_path / "a.wav", 0.5, 1.0)) == SAMPLE_RATE


def test_header_has_format_and_length(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", np.zeros((4410, 2)), 44_100)
    header = measure_audio(tmp_path / "a.ogg")
    assert header[:4] == (44_100, 2, "OGG", "VORBIS")
    assert header.seconds == pytest.approx(0.1)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
def test_truncated_wav_reports_its_declared_length(tmp_path: Path, container: str, subtype: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(440, 2.0, 16_000), 16_000, subtype=subtype, format=container)
    assert not measure_audio(path).cut_short
    data = path.read_bytes()
    path.write_bytes(data[: -len(data) // 4])
    header = measure_audio(path)
    assert header.cut_short
    assert header.seconds == pytest.approx(1.5, abs=0.01)
    assert header.promised == pytest.approx(2.0, abs=0.001)  # half a sample may be left


@pytest.mark.parametrize("declared", [0xFFFF_FFFF, 0x7FFF_F000])
def test_streamed_wav_without_size_is_not_truncated(tmp_path: Path, declared: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(440, 2.0, 16_000), 16_000, subtype="PCM_16")
    data = path.read_bytes()
    path.write_bytes(data[:40] + declared.to_bytes(4, "little") + data[44:])
    header = measure_audio(path)
    assert (header.seconds, header.promised, header.cut_short) == (2.0, 2.0, False)


def test_unusable_file_is_named(tmp_path: Path) -> None:
    text, empty, broken = tmp_path / "text.wav", tmp_path / "empty.wav", tmp_path / "nan.wav"
    text.write_text("this is no audio")
    soundfile.write(empty, np.zeros(0), 16_000)
    soundfile.write(broken, np.array([0.0, np.nan, 0.1]), 16_000, subtype="FLOAT")
    for path, reason in (
        (text, "cannot be read as audio"),
        (tmp_path / "missing.wav", "cannot be read as audio"),
        (broken, "NaN or infinity"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            read_audio(path)
        assert str(path) in str(error.value)
    with pytest.raises(UserError, match=r"empty\.wav: holds no audio"):
        measure_audio(empty)


def test_damaged_container_is_named(tmp_path: Path) -> None:
    """The first makes libsndfile loop without end; the second is what `git clone` leaves without Git LFS."""
    soundfile.write(tmp_path / "hang.wav", tone(440, 1.0, 16_000), 16_000)
    content = (tmp_path / "hang.wav").read_bytes()
    tags = b"LIST\x0c\x00\x00\x00INFOIZZZ\xf8\xff\xff\xff"
    (tmp_path / "hang.wav").write_bytes(content[:36] + tags + content[36:])
    (tmp_path / "pointer.wav").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for name, reason in (("hang", "damaged WAV: in its chunk 'LIST'"), ("pointer", "a Git LFS pointer")):
        path = tmp_path / f"{name}.wav"
        for read in (read_audio, measure_audio):
            with pytest.raises(UserError) as error:
                read(path)
            assert str(error.value).startswith(f"{path}: cannot be read as audio ({reason}")


def test_crop_beyond_the_end_is_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.flac", np.zeros(16_000, dtype=np.float32))
    with pytest.raises(UserError, match="ends at 1 s, cannot be read from 2 s"):
        read_audio(tmp_path / "a.flac", 2.0, 1.0)
