"""Files that must stay in one split."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerlens.training.cli import main
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.manifest import Corpus, Split, load_corpus
from speakerlens.training.data.prepare.grouping import by_recording
from speakerlens.training.data.prepare.pieces import share_out


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.3, 0.3, 4800), SAMPLE_RATE)


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Two speakers of five sessions, of two to six clips each; a call's number is in the names too."""
    for number, speaker in enumerate(("ana", "bo")):
        for session in range(5):
            for clip in range(2 + session):
                path = tmp_path / "speech" / speaker / f"video{session}" / f"{clip}-call{session % 3}.flac"
                write(path, 1000 * number + 100 * session + clip)
    return tmp_path / "speech"


def prepare(*arguments: object) -> int:
    return main(["prepare", "folder", *map(str, arguments)])


def homes(corpus: Corpus, name: str) -> dict[str, set[str]]:
    """The splits of each part of the path at a place: `folder`, `call`, `file`."""
    found: dict[str, set[str]] = defaultdict(set)
    for clip in corpus.clips:
        part = {
            "folder": f"{clip.speaker}/{clip.path.parent.name}",
            "call": f"{clip.speaker}/{clip.path.stem[2:]}",
            "file": str(clip.path),
        }[name]
        found[part].add(clip.split)
    return found


def test_sub_folders_stay_in_one_split(tmp_path: Path, speech: Path) -> None:
    assert prepare("--speech", speech, "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    found = homes(corpus, "folder")
    assert len(found) == 10
    assert all(len(splits) == 1 for splits in found.values())
    for speaker in ("ana", "bo"):
        assert {clip.split for clip in corpus.clips if clip.speaker == speaker} == {"train", "dev", "test"}
    assert len(corpus.utterances("train")) > len(corpus.utterances("test"))


def test_pattern_finds_the_session(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("--speech", speech, "--group-by", r"call\d", "--out", tmp_path / "out") == 0
    found = homes(load_corpus(tmp_path / "out"), "call")
    assert len(found) == 6
    assert all(len(splits) == 1 for splits in found.values())
    assert prepare("--speech", speech, "--group-by", "x", "--out", tmp_path / "none") == 2
    assert "--group-by 'x' matches none of 20 files" in capsys.readouterr().err
    assert prepare("--speech", speech, "--group-by", "(", "--out", tmp_path / "none") == 2
    assert "--group-by '(' is not a regular expression" in capsys.readouterr().err
    assert prepare("--speech", speech, "--group-by", ".+", "--out", tmp_path / "alone") == 0
    assert any(len(splits) > 1 for splits in homes(load_corpus(tmp_path / "alone"), "folder").values())


def test_of_two_sessions_one_is_the_test(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for session in range(2, 5):
        for path in (speech / "ana" / f"video{session}").iterdir():
            path.unlink()
    assert prepare("--speech", speech, "--out", tmp_path / "out") == 0
    found = homes(load_corpus(tmp_path / "out"), "folder")
    assert found["ana/video0"] == {"test"}
    assert found["ana/video1"] == {"train", "dev"}
    assert "speakers with two sessions, of which dev and train share one: 1 (ana)" in capsys.readouterr().out


def test_speaker_of_one_session_is_refused(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("--speech", speech, "--group-by", "video", "--out", tmp_path / "out") == 2
    assert "needs at least two sessions, one of them for test: ana (1: video), bo (1: video)" in capsys.readouterr().err


def test_identical_content_stays_together(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = speech / "ana" / "video1" / "0-call1.flac", speech / "ana" / "video4" / "again.wav"
    soundfile.write(other, soundfile.read(first)[0], SAMPLE_RATE)
    assert prepare("--speech", speech, "--out", tmp_path / "out") == 0
    found = homes(load_corpus(tmp_path / "out"), "folder")
    assert len(found["ana/video1"] | found["ana/video4"]) == 1
    told = f"the same content, kept in one split: 1 ({first} = {other})"
    assert told in capsys.readouterr().out


def test_identical_content_of_two_speakers_is_refused(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [speech / name / "video3" / "0-call0.flac" for name in ("ana", "bo")]
    pair[1].write_bytes(pair[0].read_bytes())
    assert prepare("--speech", speech, "--out", tmp_path / "out") == 2
    assert f"2 files have the same content under two speakers: {pair[0]} = {pair[1]}" in capsys.readouterr().err
    assert prepare("--speech", speech, "--allow-bad", 2, "--out", tmp_path / "out") == 0
    found = homes(load_corpus(tmp_path / "out"), "file")
    assert not {str(path) for path in pair} & set(found)
    report = (tmp_path / "out" / "report.txt").read_text()
    assert f"  {pair[0]}: as {pair[1]}\n  {pair[1]}: as {pair[0]}\n" in report


def test_cuts_of_one_noise_stay_in_one_split(tmp_path: Path, speech: Path) -> None:
    names = [f"{fold}-{10_000 + number}-{cut}.ogg" for fold in (1, 2) for number in range(4) for cut in "ABC"]
    for seed, name in enumerate(names):
        write(tmp_path / "noise" / ("rain" if seed % 2 else "wind") / name, seed)
    assert prepare("--speech", speech, "--noise", tmp_path / "noise", "--out", tmp_path / "out") == 0
    found = defaultdict(set)
    for clip in load_corpus(tmp_path / "out").clips:
        if clip.kind == "noise":
            found[clip.path.stem.split("-", 2)[2][:-2]].add(clip.split)
    assert len(found) == 8
    assert all(len(splits) == 1 for splits in found.values())


@pytest.mark.parametrize(
    ("names", "recordings"),
    [
        (["1-17-A-3.wav", "1-17-B-3.wav", "2-17-A-3.wav"], 2),
        (["100-3-0-0.wav", "100-3-0-5.wav", "101-3-0-0.wav"], 2),
        (["rain-part1.wav", "rain-part2.wav", "wind_cut_1.wav"], 2),
        (["home/ch01.wav", "home/ch16.wav", "street/ch01.wav"], 2),
        (["rain_0.0_10.0.wav", "rain_10.0_20.0.wav", "wind_0.0_10.0.wav"], 2),
        (["bus_left.wav", "bus_right.wav", "tram_left.wav"], 2),
        (["noise-0001.wav", "noise-0002.wav", "bach-1.wav", "bach-2.wav"], 4),
        (["2026-01-03-01.wav", "2026-01-03-02.wav", "2026-02-03-01.wav"], 3),
    ],
)
def test_recording_is_derived_from_the_name(tmp_path: Path, names: list[str], recordings: int) -> None:
    assert len(by_recording(tmp_path, [tmp_path.resolve() / name for name in names], None)) == recordings


def test_large_groups_leave_something_for_every_split() -> None:
    shares: dict[Split, float] = {"test": 0.2, "dev": 0.1}
    for sizes in ([1, 1, 10], [10, 1, 1], [10, 10, 10], [1, 10, 1, 40]):
        parts = share_out([1.0] * len(sizes), shares, sizes=sizes)
        assert all(parts.values())
        assert sorted(index for part in parts.values() for index in part) == list(range(len(sizes)))
        assert 40 not in sizes or 3 in parts["train"]
