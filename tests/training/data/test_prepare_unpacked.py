"""MUSAN and RIRS_NOISES as they unpack, given to `prepare folder`."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerlens.training.cli import main
from speakerlens.training.data.audio import read_audio
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.manifest import Kind, Split, load_corpus
from speakerlens.training.data.prepare.collection import rirs, room_of
from tests.training.data.unpacked import MEASURED, SIMULATED, make_musan, make_rirs, make_voxceleb1, tone, write_wav

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    make_voxceleb1(tmp_path / "vox")
    return tmp_path / "vox" / "wav"


def prepare(*arguments: object) -> int:
    return main(["prepare", "folder", *map(str, arguments)])


def test_musan_and_rirs_give_every_kind_of_interference(tmp_path: Path, speech: Path) -> None:
    unpacked = ("--musan", make_musan(tmp_path), "--rirs", make_rirs(tmp_path) / "RIRS_NOISES")
    assert prepare("--speech", speech, *unpacked, "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    expected: dict[Kind, list[int]] = {"noise": [2, 1, 1], "music": [2, 1, 1], "speech": [9, 1, 2]}
    for kind, counts in expected.items():
        parts = [corpus.interference(kind, split) for split in SPLITS]
        assert [len(part) for part in parts] == counts
        paths = {clip.path for part in parts for clip in part}
        assert paths == set((tmp_path / "musan" / kind).rglob("*.wav"))  # all of them, where they are
    talkers = [{clip.speaker for clip in corpus.interference("speech", split)} for split in SPLITS]
    assert len(set.union(*talkers)) == 12
    assert "musan-us-gov/speech-us-gov-0003.wav" in set.union(*talkers)
    assert not set.union(*talkers) & set(corpus.speakers)
    source = InterferenceSource(corpus, "train")
    assert set(source.kinds) == {"noise", "music", "babble", "speaker", "reverb"}
    assert np.abs(source.draw("babble", 4000, np.random.default_rng(0))).max() > 0


def test_talkers_with_files_of_one_name_are_all_used(tmp_path: Path, speech: Path) -> None:
    make_musan(tmp_path)
    for name in ("librivox/again.wav", "us-gov/again.wav", "us-gov/again.flac"):
        write_wav(tmp_path / "musan" / "speech" / name, tone(250))
    assert prepare("--speech", speech, "--musan", tmp_path, "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    clips = [clip for split in SPLITS for clip in corpus.interference("speech", split)]
    assert {clip.path for clip in clips} == {
        path for path in (tmp_path / "musan" / "speech").rglob("*") if path.suffix in (".wav", ".flac")
    }
    assert len({clip.speaker for clip in clips}) == len(clips) == 15


def test_rooms_are_in_one_split_and_noises_are_left_out(tmp_path: Path, speech: Path) -> None:
    make_rirs(tmp_path)
    assert prepare("--speech", speech, "--rirs", tmp_path, "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    simulated = tmp_path / "RIRS_NOISES" / "simulated_rirs"
    rooms: dict[str, set[str]] = {}
    names = []
    for split in SPLITS:
        for clip in corpus.interference("rir", split):
            if clip.path.is_relative_to(simulated):  # mono already: stays where it is
                room = clip.path.parent.relative_to(simulated).as_posix()
                names.append(clip.path.name)
            else:
                name = clip.path.name.split("-", 2)[2]
                names.append(name)
                room = room_of(name)
            rooms.setdefault(room, set()).add(split)
    assert {room for room in rooms if "/Room" in room} == set(SIMULATED)
    assert len(rooms) == len(SIMULATED) + 4
    assert all(len(splits) == 1 for splits in rooms.values())
    assert sum(name.startswith("Room") for name in names) == 12
    assert sorted(name.removesuffix(".flac") for name in names if not name.startswith("Room")) == sorted(MEASURED)


def test_measured_response_is_of_one_microphone(tmp_path: Path, speech: Path) -> None:
    make_rirs(tmp_path)
    assert prepare("--speech", speech, "--rirs", tmp_path, "--out", tmp_path / "out") == 0
    path = next((tmp_path / "out" / "rirs").glob("*ofc_imp050.flac"))
    real = tmp_path / "RIRS_NOISES" / "real_rirs_isotropic_noises"
    first = soundfile.read(real / f"{path.name.split('-', 2)[2].removesuffix('.flac')}.wav")[0][:, 0]
    response = read_audio(path)
    np.testing.assert_allclose(response / response[0], first / first[0], atol=1e-3)


def test_responses_are_those_listed_or_named(tmp_path: Path) -> None:
    """Without the list, the Aachen files count as well, though their names say air and not rir."""
    for listed in (True, False):
        folder = make_rirs(tmp_path / str(listed), listed)
        real = [path.stem for path in rirs(folder).paths if "simulated_rirs" not in path.parts]
        assert sorted(real) == sorted(MEASURED)
    listing = tmp_path / "True" / "RIRS_NOISES" / "real_rirs_isotropic_noises" / "rir_list"
    listing.write_text(listing.read_text().splitlines()[2])
    real = [path.stem for path in rirs(tmp_path / "True").paths if "simulated_rirs" not in path.parts]
    assert real == [MEASURED[2]]


def test_room_is_derived_from_the_file_name(tmp_path: Path) -> None:
    """One room through whatever was measured in it."""
    groups = rirs(make_rirs(tmp_path)).groups
    assert [path.stem for path in groups["RVB2014/largeroom1"]] == list(MEASURED[:2])
    assert len(groups["smallroom/Room001"]) == 3
    assert room_of("RVB2014_type1_rir_largeroom1_far_angla.wav") == "RVB2014/largeroom1"
    assert room_of("RVB2014_type2_rir_simroom3_near_anglb.wav") == "RVB2014/simroom3"
    assert room_of("RWCP_type1_rir_circle_e1c_imp010.wav") == "RWCP/e1c"
    assert room_of("RWCP_type1_rir_cirline_ofc_imp_rev.wav") == room_of("RWCP_type3_rir_cirline_ofc_imp1.wav")
    assert room_of("RWCP_type4_rir_p30l.wav") == "RWCP"
    assert room_of("air_type1_air_binaural_aula_carolina_0_1_3.wav") == "air/aula_carolina"
    for name in ("binaural_stairway_1_1_90", "phone_stairway1_hfrp", "phone_bt_stairway_hhp", "phone_stairway_hfrp"):
        assert room_of(f"air_type1_air_{name}.wav") == "air/stairway"
    assert room_of("mine.wav") == "mine.wav"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert prepare(*arguments) == 2
    return capsys.readouterr().err


def test_folder_that_is_not_such_a_corpus_is_refused(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--speech", speech, "--out", tmp_path / "out")
    make_musan(tmp_path)
    (tmp_path / "musan" / "music").rename(tmp_path / "musan" / "tunes")
    error = refused(capsys, *arguments, "--musan", tmp_path)
    assert "is not an unpacked MUSAN, a folder with noise, music and speech: there is no music" in error
    (tmp_path / "musan" / "tunes").rename(tmp_path / "musan" / "music")
    (tmp_path / "musan" / "music" / "fma" / "music-fma-0001.wav").write_bytes(b"RIFF")
    error = refused(capsys, *arguments, "--musan", tmp_path / "musan")
    assert "1 of 4 files cannot be used" in error
    assert "music-fma-0001.wav: cannot be read as audio" in error
    error = refused(capsys, *arguments, "--rirs", tmp_path)
    assert "is not an unpacked RIRS_NOISES" in error
    real = make_rirs(tmp_path) / "RIRS_NOISES" / "real_rirs_isotropic_noises"
    (real / f"{MEASURED[0]}.wav").unlink()
    assert f"names 1 impulse responses that are missing, such as {MEASURED[0]}.wav" in refused(
        capsys, *arguments, "--rirs", tmp_path
    )
    write_wav(tmp_path / "lone" / "simulated_rirs" / "smallroom" / "Room001" / "Room001-00001.wav", tone(100))
    error = refused(capsys, *arguments, "--rirs", tmp_path / "lone")
    assert "needs at least 3 rooms, one each for train, dev and test, and has 1" in error
    assert not (tmp_path / "out").exists()
