"""Cut and overwritten files, as half-finished downloads and bad disks leave them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerlens.training.data.audio import measure_audio
from speakerlens.training.errors import UserError

FORMS: dict[str, dict[str, str]] = {
    "flac": {},
    "ogg": {"subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"bitrate_mode": "VARIABLE"},
    "au": {},
    "aiff": {},
    "w64": {},
    "rf64": {},
    "wav": {},
    "voc": {},
    "sph": {"format": "NIST"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of noise in every form."""
    folder = tmp_path_factory.mktemp("whole")
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 48_000)
    for suffix, form in FORMS.items():
        soundfile.write(folder / f"a.{suffix}", samples, 16_000, **form)
    return folder


def complaint(path: Path) -> str:
    """What is wrong with a file, or nothing."""
    try:
        facts = measure_audio(path)
    except UserError as error:
        return str(error)
    return f"{path}: cut short" if facts.cut_short else ""


@pytest.mark.parametrize("suffix", FORMS)
def test_whole_file_has_its_length(whole: Path, suffix: str) -> None:
    path = whole / f"a.{suffix}"
    assert complaint(path) == ""
    assert measure_audio(path).seconds == pytest.approx(3.0, abs=0.03)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", FORMS)
def test_cut_file_is_found(whole: Path, tmp_path: Path, suffix: str, share: float) -> None:
    content = (whole / f"a.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(content[: int(share * len(content)) // 2 * 2])
    assert "cut short" in complaint(path)


@pytest.mark.parametrize("filling", ["zeros", "noise", "gap"])
@pytest.mark.parametrize("suffix", ["flac", "ogg", "opus", "mp3"])
def test_overwritten_file_is_found(whole: Path, tmp_path: Path, suffix: str, filling: str) -> None:
    """Of coded audio; samples without a code could be anything."""
    content = bytearray((whole / f"a.{suffix}").read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 3000)
    new = {"zeros": bytes(3000), "noise": np.random.default_rng(1).bytes(3000), "gap": b""}[filling]
    content[middle] = new
    path = tmp_path / f"spoilt.{suffix}"
    path.write_bytes(content)
    assert "damaged" in complaint(path) or "cut short" in complaint(path)


def test_tags_and_padding_after_mp3_are_no_damage(whole: Path, tmp_path: Path) -> None:
    content = (whole / "a.mp3").read_bytes()
    for tail in (b"TAG" + bytes(125), b"APETAGEX" + bytes(5000), bytes(512)):
        (tmp_path / "a.mp3").write_bytes(content + tail)
        assert complaint(tmp_path / "a.mp3") == ""


def test_equal_content_has_equal_digests(whole: Path, tmp_path: Path) -> None:
    """Also in another container, or under another name."""
    shutil.copy(whole / "a.flac", tmp_path / "b.flac")
    soundfile.write(tmp_path / "b.wav", soundfile.read(whole / "a.flac", dtype="int16")[0], 16_000)
    same = [measure_audio(path).digest for path in (whole / "a.flac", tmp_path / "b.flac", tmp_path / "b.wav")]
    assert len(set(same)) == 1
    assert measure_audio(whole / "a.mp3").digest != same[0]
