import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerlens.training.data.audio import SAMPLE_RATE, read_audio
from speakerlens.training.data.packing import HEADER_BYTES, PACKED, from_pcm, packed_header, packed_samples, to_pcm
from speakerlens.training.errors import UserError


def write_packed(path: Path, samples: np.ndarray, claimed: int | None = None, rate: int = SAMPLE_RATE) -> Path:
    path.write_bytes(packed_header(len(samples) if claimed is None else claimed, rate) + samples.tobytes())
    return path


def test_packed_file_is_read_by_libsndfile(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32_768, 32_768, 5000).astype("<i2")
    path = write_packed(tmp_path / PACKED, samples)
    read, rate = soundfile.read(path, dtype="int16")
    assert rate == SAMPLE_RATE
    np.testing.assert_array_equal(read, samples)
    assert soundfile.info(path).format == "RF64"


def test_packed_slices_equal_other_files(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(-32_768, 32_768, 5000).astype("<i2")
    path = write_packed(tmp_path / PACKED, samples)
    other = tmp_path / "other.wav"
    soundfile.write(other, samples, SAMPLE_RATE, subtype="PCM_16")
    for stretch in [(0.0, None), (0.1, 0.05), (0.30003, 0.2), (0.0, 1.0), (5000 / SAMPLE_RATE, 0.1)]:
        np.testing.assert_array_equal(read_audio(path, *stretch), read_audio(other, *stretch))
    with pytest.raises(UserError, match=r"ends at 0\.3125 s, cannot be read from 0\.4 s"):
        read_audio(path, 0.4, 0.1)


def test_header_beyond_four_gigabytes(tmp_path: Path) -> None:
    count = 2**31 + 5 * SAMPLE_RATE  # samples; 4.3 GB
    path = tmp_path / PACKED
    last = np.arange(1, 4801).astype("<i2")
    with path.open("wb") as file:  # sparse: takes hardly any room
        file.write(packed_header(count, SAMPLE_RATE))
        file.seek(HEADER_BYTES + 2 * (count - len(last)))
        file.write(last.tobytes())
    start = (count - len(last)) / SAMPLE_RATE
    np.testing.assert_array_equal(to_pcm(read_audio(path, start, 0.3)), last)
    with soundfile.SoundFile(path) as file:
        assert file.frames == count
        file.seek(count - len(last))
        np.testing.assert_array_equal(file.read(dtype="int16"), last)


@pytest.mark.parametrize("damage", ["cut", "longer", "header", "rate", "empty"])
def test_damaged_packed_file_is_refused(tmp_path: Path, damage: str) -> None:
    samples = np.arange(1000).astype("<i2")
    path = write_packed(
        tmp_path / PACKED,
        samples[:0] if damage == "empty" else samples,
        {"cut": 1001, "longer": 999}.get(damage),
        8000 if damage == "rate" else SAMPLE_RATE,
    )
    if damage == "header":
        path.write_bytes(struct.pack("<4s", b"RIFF") + path.read_bytes()[4:])
    with pytest.raises(UserError, match=r"packed\.rf64: damaged, cut short, or not a packed corpus"):
        packed_samples(path, SAMPLE_RATE)


def test_replaced_file_is_mapped_again(tmp_path: Path) -> None:
    path = write_packed(tmp_path / PACKED, np.full(100, 1, "<i2"))
    assert packed_samples(path, SAMPLE_RATE)[0] == 1
    replaced = write_packed(tmp_path / "new", np.full(101, 2, "<i2"))
    replaced.replace(path)
    assert packed_samples(path, SAMPLE_RATE)[0] == 2


def test_16_bit_samples_survive_the_round_trip() -> None:
    every = np.arange(-32_768, 32_768).astype(np.int16)
    np.testing.assert_array_equal(to_pcm(from_pcm(every)), every)
    assert from_pcm(every)[[0, 32_768, -1]].tolist() == [-1.0, 0.0, 32_767 / 32_768]
    assert to_pcm(np.array([1.5, -1.5, 1.0], np.float32)).tolist() == [32_767, -32_768, 32_767]
