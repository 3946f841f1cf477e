import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from speakerlens.training.checkpoint import load_run
from speakerlens.training.cli import main
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.batches import BatchSource
from speakerlens.training.data.manifest import MANIFEST, Corpus, Split, load_corpus
from speakerlens.training.variants import VARIANTS
from tests.training.data.unpacked import (
    SPEAKERS,
    make_musan,
    make_rirs,
    make_voxceleb1,
    tone,
    utterances,
    write_split,
    write_wav,
)
from tests.training.toy import toy_config

CONFIG = Path(__file__).parents[3] / "training" / "configs" / "voxceleb1.yaml"
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@pytest.fixture
def vox(tmp_path: Path) -> Path:
    return make_voxceleb1(tmp_path / "vox")[0]


def prepare(root: Path, *more: object) -> int:
    words = ["--root", root, "--split", root / "iden_split.txt", "--out", root.parent / "out", *more]
    return main(["prepare", "voxceleb1", *map(str, words)])


def names(corpus: Corpus, split: Split) -> set[str]:
    return {"/".join(clip.path.parts[-3:]) for clip in corpus.utterances(split)}


def listed(number: int) -> set[str]:
    return {name for split, name in utterances() if split == number}


def report(root: Path) -> dict[str, list[str]]:
    """The findings in the report, by their titles."""
    sections = (root.parent / "out" / "report.txt").read_text().split("\n\n")[1:]
    return {section.split(":")[0]: [line.strip() for line in section.splitlines()[1:]] for section in sections}


def test_corpus_follows_the_split_file_without_copies(vox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(vox) == 0
    out = vox.parent / "out"
    corpus = load_corpus(out)
    assert corpus.speakers == SPEAKERS
    assert [names(corpus, split) for split in SPLITS] == [listed(1), listed(2), listed(3)]
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, "report.txt"]
    for clip in corpus.clips:
        assert clip.path.is_relative_to(vox / "wav")
        assert clip.speaker == clip.path.parts[-3]
        assert clip.duration == pytest.approx(0.4)
    printed = capsys.readouterr().out
    assert "30 utterances of 3 speakers (train 18, dev 6, test 6), but the official split has 1,251 speakers" in printed
    assert "train 138,361, dev 6,904, test 8,251" in printed
    assert "3 speakers, utterances: train 18, dev 6, test 6 (12 s), 0 files" in printed
    assert report(vox) == {}


@pytest.mark.parametrize("places", [("", ""), ("dev/wav", "test/wav")])
def test_archives_unpacked_in_other_places_are_found(tmp_path: Path, places: tuple[str, str]) -> None:
    vox, _ = make_voxceleb1(tmp_path / "vox", places[0])
    if places[0] != places[1]:
        (vox / places[1]).mkdir(parents=True)
        shutil.move(vox / places[0] / SPEAKERS[0], vox / places[1] / SPEAKERS[0])
    (vox / "notes").mkdir()
    assert prepare(vox) == 0
    corpus = load_corpus(tmp_path / "out")
    assert [names(corpus, split) for split in SPLITS] == [listed(1), listed(2), listed(3)]


def test_official_split_is_recognised(
    vox: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speakerlens.training.data.prepare.voxceleb1.OFFICIAL_SPEAKERS", 3)
    monkeypatch.setattr(
        "speakerlens.training.data.prepare.voxceleb1.OFFICIAL_COUNTS", {"train": 18, "dev": 6, "test": 6}
    )
    assert prepare(vox) == 0
    assert "(train 18, dev 6, test 6), as in the official split" in capsys.readouterr().out


def test_voxceleb1_gives_batches_of_every_kind(vox: Path, tmp_path: Path) -> None:
    unpacked = ("--musan", make_musan(tmp_path), "--rirs", make_rirs(tmp_path))
    assert prepare(vox, *unpacked) == 0
    corpus = load_corpus(tmp_path / "out")
    talkers = [{clip.speaker for clip in corpus.interference("speech", split)} for split in SPLITS]
    assert [len(group) for group in talkers] == [9, 1, 2]
    assert not set.union(*talkers) & set(corpus.speakers)
    source = BatchSource(corpus, toy_config(tmp_path), VARIANTS["act-pair"], torch.device("cpu"))
    assert set(source.kinds) == {"noise", "music", "babble", "speaker", "reverb"}
    batch = source.batch(0)
    crop = round(0.3 * SAMPLE_RATE)
    assert batch.audio.shape == (12, crop)
    # Each utterance is a tone, from 200 Hz up by 100 Hz a speaker: so the clean half of the batch shows the labels.
    for row, label in zip(batch.audio[:6].numpy(), batch.labels[:6], strict=True):
        hertz = np.argmax(np.abs(np.fft.rfft(row))) * SAMPLE_RATE / crop
        assert round((hertz - 200) / 100) == int(label)
    assert (batch.audio[6:] - batch.audio[:6]).abs().amax(dim=1).min() > 0


@pytest.mark.parametrize("variant", ["clean", "act-da"])
def test_shipped_configuration_trains_on_voxceleb1(vox: Path, tmp_path: Path, variant: str) -> None:
    """A small network and batch in its place; all else, schedules and interference too, is as shipped."""
    assert prepare(vox, "--musan", make_musan(tmp_path), "--rirs", make_rirs(tmp_path)) == 0
    small = "network.blocks=[1,1,1,1] network.width=2 network.embedding=8 data.batch_size=4 data.crop_seconds=0.5"
    words = ["--config", CONFIG, "--corpus", tmp_path / "out", "--variant", variant, "--device", "cpu", "--updates", 3]
    settings = [word for setting in small.split() for word in ("--set", setting)]
    assert main(["fit", *map(str, words), *settings, "--out", str(tmp_path / "run")]) == 0
    assert load_run(tmp_path / "run").step == 3


def cut_short(path: Path) -> None:
    """Take half of its samples off a file, as a download that broke off does; its header stays."""
    data = path.read_bytes()
    path.write_bytes(data[: 44 + (len(data) - 44) // 2])


def spoil(vox: Path) -> dict[str, list[str]]:
    """Put every fault into the tree and the split file; returns what the report must call each, and list."""
    wav, lines = vox / "wav", utterances()
    train = [name for split, name in lines if split == 1]
    (wav / train[0]).unlink()
    shutil.rmtree((wav / train[3]).parent)  # a whole video
    (wav / train[6]).write_bytes(b"RIFF but no more")
    write_wav(wav / train[7], tone(300, 0.1))
    cut_short(wav / train[10])
    write_wav(wav / train[8], tone(300), rate=8000)
    write_wav(wav / train[9], np.stack([tone(300)] * 2, axis=1))
    for name in train[12:]:  # all that the third speaker has to train on
        (wav / name).write_bytes(b"")
    write_wav(wav / "id10001" / "another" / "00001.wav", tone(300))
    write_wav(wav / "id10009" / "stranger" / "00001.wav", tone(300))
    write_wav(vox / "dev" / "wav" / train[1], tone(300))
    write_split(vox / "iden_split.txt", [*lines, (1, train[1]), (2, train[2])])
    lost = [name for _, name in lines if name.startswith(train[3].rsplit("/", 1)[0])]
    return {
        "listed in two splits": [train[2]],
        "missing": [train[0], *lost],
        "unreadable": [train[6], *train[12:]],
        "cut short": [f"{train[10]}: 0.2 s of 0.4 s"],
        "too short": [f"{train[7]}: 0.1 s"],
        "not 16 kHz mono PCM in WAV or FLAC": [f"{train[8]}: 8000 Hz, 1 ch", f"{train[9]}: 16000 Hz, 2 ch"],
        "speakers without training utterances": [SPEAKERS[2]],
        "listed twice, used once": [train[1]],
        "in two folders, the first used": [train[1]],
        "not in the split file, ignored": ["id10001/another/00001.wav", "id10009/stranger/00001.wav"],
    }


def test_report_has_every_finding_and_nothing_is_made(vox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = spoil(vox)
    assert prepare(vox) == 2
    assert [path.name for path in (vox.parent / "out").iterdir()] == ["report.txt"]
    found = report(vox)
    assert list(found) == list(expected)
    printed = capsys.readouterr()
    for title, wanted in expected.items():
        assert len(found[title]) == len(wanted), title
        assert all(name in line for name, line in zip(wanted, found[title], strict=True)), title
        assert f"\n{title}: {len(wanted)} (" in printed.out
    assert "id10001/01video1/00000.wav, " in printed.out
    assert "and 1 more" in printed.out  # six are missing, and five are named
    assert printed.err.count("\n") == 1
    assert "1 listed in two splits, 6 missing, 7 unreadable, 1 cut short, 1 too short" in printed.err
    assert "--allow-missing" not in printed.err  # which would not help
    assert not list(vox.parent.glob(".*unfinished"))


def test_unusable_files_are_left_out_if_allowed(vox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = spoil(vox)
    assert prepare(vox, "--allow-missing") == 2  # listed in two splits: ambiguous
    assert "1 listed in two splits; correct this; " in capsys.readouterr().err
    write_split(vox / "iden_split.txt", utterances())
    assert prepare(vox) == 2
    assert "6 missing" in (error := capsys.readouterr().err)
    assert "or leave them out with --allow-missing" in error
    assert prepare(vox, "--allow-missing") == 0  # the report that refusals left is replaced
    corpus = load_corpus(vox.parent / "out")
    assert corpus.speakers == SPEAKERS[:2]
    bad = {line.split(":")[0] for lines in list(expected.values())[1:6] for line in lines}
    for number, split in enumerate(SPLITS, start=1):
        assert names(corpus, split) == {name for name in listed(number) - bad if SPEAKERS[2] not in name}
    assert report(vox)["speakers without training utterances"] == [SPEAKERS[2]]
    assert len(report(vox)["missing"]) == 6


def test_unreadable_interference_is_in_the_report(
    vox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_musan(tmp_path)
    broken = tmp_path / "musan" / "speech" / "us-gov" / "speech-us-gov-0005.wav"
    broken.write_bytes(b"")
    assert prepare(vox, "--musan", tmp_path / "musan") == 2
    assert "1 unreadable" in capsys.readouterr().err
    assert str(broken) in report(vox)["unreadable"][0]
    assert prepare(vox, "--musan", tmp_path / "musan", "--allow-missing") == 0
    corpus = load_corpus(tmp_path / "out")
    assert sum(len(corpus.interference("speech", split)) for split in SPLITS) == 11


def test_truncated_interference_is_in_the_report(vox: Path, tmp_path: Path) -> None:
    make_musan(tmp_path)
    cut = tmp_path / "musan" / "noise" / "free-sound" / "noise-free-sound-0001.wav"
    cut_short(cut)
    assert prepare(vox, "--musan", tmp_path / "musan") == 2
    assert report(vox) == {"cut short": [f"{cut}: 0.25 s of 0.5 s"]}
    assert prepare(vox, "--musan", tmp_path / "musan", "--allow-missing") == 0
    corpus = load_corpus(tmp_path / "out")
    noises = {clip.path for split in SPLITS for clip in corpus.interference("noise", split)}
    assert len(noises) == 3
    assert cut not in noises


def test_damaged_interference_is_reported_first(vox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_musan(tmp_path)
    broken = sorted((tmp_path / "musan" / "music").rglob("*.wav"))
    for path in broken:
        path.write_bytes(b"RIFF but no more")
    assert prepare(vox, "--musan", tmp_path / "musan") == 2
    assert "4 unreadable; correct this or leave them out" in capsys.readouterr().err
    assert [line.split(":")[0] for line in report(vox)["unreadable"]] == [str(path) for path in broken]
    (tmp_path / "out" / "report.txt").unlink()
    assert prepare(vox, "--musan", tmp_path / "musan", "--allow-missing") == 2
    printed = capsys.readouterr()
    assert "unreadable: 4" in printed.out
    assert "one each for train, dev and test, and has 0 that can be used, of 4" in printed.err
    assert len(report(vox)["unreadable"]) == 4


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("4 id10003/video/00001.wav", "line 31: must be 1, 2 or 3 and a file"),
        ("1 id10003/00001.wav", "line 31: must be"),
        ("1 ../video/00001.wav", "line 31: must be"),
        ("1 /id10003/video/00001.wav", "line 31: must be"),
        ("1 id10003/video/00001.m4a", "line 31: must be"),
        ("id10003/video/00001.wav", "not 'id10003/video/00001.wav'"),
        ("\xff", "cannot be read as the split file iden_split.txt"),
    ],
)
def test_wrong_line_of_the_split_file_is_named(
    vox: Path, capsys: pytest.CaptureFixture[str], line: str, complaint: str
) -> None:
    with (vox / "iden_split.txt").open("ab") as file:
        file.write(line.encode("latin-1"))
    assert prepare(vox) == 2
    assert complaint in capsys.readouterr().err
    assert not (vox.parent / "out").exists()


def test_wrong_folders_and_files_are_named(vox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*more: object) -> str:
        assert prepare(vox, *more) == 2
        return capsys.readouterr().err

    assert "nowhere: is not a folder" in refused("--root", "nowhere")
    assert "nowhere: is not a folder" in refused("--musan", "nowhere")
    assert "nowhere: cannot be read as the split file" in refused("--split", "nowhere")
    (tmp_path / "none").write_text("\n")
    assert "none: names no file" in refused("--split", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds none of the 30 files" in refused("--root", tmp_path / "empty")
    assert "is not an unpacked MUSAN" in refused("--musan", tmp_path / "empty")
    write_split(tmp_path / "one", utterances(SPEAKERS[:1]))
    assert "utterances of at least 2 speakers are needed, not of 1" in refused("--split", tmp_path / "one")
    assert not (tmp_path / "out").exists()


def test_only_an_own_report_is_replaced(vox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = vox.parent / "out"
    out.mkdir()
    (out / "report.txt").write_text("a thesis")
    assert prepare(vox) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (out / "report.txt").read_text() == "a thesis"


def test_names_that_are_not_utf8_are_reported(vox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = vox / "wav" / "id10001" / "01video1" / os.fsdecode(b"\xff.wav")
    write_wav(vox / "wav" / "id10001" / "01video1" / "odd.wav", tone(300))
    (vox / "wav" / "id10001" / "01video1" / "odd.wav").rename(odd)
    assert prepare(vox) == 0
    assert r"not in the split file, ignored: 1 (id10001/01video1/\udcff.wav)" in capsys.readouterr().out
