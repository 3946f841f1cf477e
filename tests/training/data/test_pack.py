from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speakerlens.training.cli import main
from speakerlens.training.config import Config
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, write_audio
from speakerlens.training.data.batches import BatchSource
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.manifest import Clip, Corpus, Split, load_corpus, write_corpus
from speakerlens.training.data.packing import PACKED
from speakerlens.training.evaluation.dev import make_dev_set
from speakerlens.training.variants import VARIANTS
from tests.training.toy import noting

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The toy corpus with a long noise, a clip that is part of a file, and talkers without names."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(7)
    write_audio(folder / "long.flac", 0.1 * rng.standard_normal(31 * SAMPLE_RATE).astype(np.float32))
    clips = [Clip(folder / "long.flac", "noise", "train", 0.0, 31.0, None)]
    for number in range(4):
        write_audio(folder / f"talk-{number}.flac", 0.1 * rng.standard_normal(8000).astype(np.float32))
        clips.append(Clip(folder / f"talk-{number}.flac", "speech", "train", 0.0, 0.5, None))
    first, *others = corpus.clips
    part = replace(first, start=0.1000625, duration=0.7)  # 1601 samples in
    return write_corpus(folder, [part, *others, *clips])


@pytest.fixture(scope="module")
def packed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("packed") / "out"
    assert main(["pack", "--corpus", str(corpus.root), "--out", str(out)]) == 0
    return load_corpus(out)


def test_packed_clips_equal_the_files(corpus: Corpus, packed: Corpus) -> None:
    assert packed.speakers == corpus.speakers
    assert packed.digest != corpus.digest
    assert sorted(path.name for path in packed.root.iterdir()) == ["manifest.jsonl", PACKED]
    for ours, theirs in zip(packed.clips, corpus.clips, strict=True):
        assert (ours.kind, ours.split, ours.speaker) == (theirs.kind, theirs.split, theirs.speaker)
        expected = read_audio(theirs.path, theirs.start, theirs.duration)
        np.testing.assert_array_equal(read_audio(ours.path, ours.start, ours.duration), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("megabytes", [0, 512])
def test_packed_batches_equal_those_of_the_files(
    corpus: Corpus, packed: Corpus, config: Config, variant: str, megabytes: int
) -> None:
    config = replace(config, data=replace(config.data, cache_megabytes=megabytes))
    sources = [BatchSource(each, config, VARIANTS[variant], CPU) for each in (corpus, packed)]
    assert sources[0].kinds == sources[1].kinds
    for step in range(8):
        one, other = (source.batch(step) for source in sources)
        assert torch.equal(one.audio, other.audio)
        assert torch.equal(one.labels, other.labels)


def test_packed_dev_set_equals_that_of_the_files(corpus: Corpus, packed: Corpus, config: Config) -> None:
    one, other = make_dev_set(corpus, config), make_dev_set(packed, config)
    assert one is not None
    assert other is not None
    assert one.corrupted is not None
    assert other.corrupted is not None
    assert torch.equal(one.corrupted, other.corrupted)


def test_unnamed_talkers_stay_distinct(corpus: Corpus, packed: Corpus) -> None:
    assert "babble" in InterferenceSource(corpus, "train").kinds
    assert "babble" in InterferenceSource(packed, "train").kinds


def test_pack_help_warns_about_comparing_reports(capsys: pytest.CaptureFixture[str]) -> None:
    """They hold other interference: it is drawn by a clip's path and start, which packing changes."""
    with pytest.raises(SystemExit):
        main(["pack", "--help"])
    assert "cannot be compared with reports made on the original" in " ".join(capsys.readouterr().out.split())


def test_packed_crop_reads_only_its_samples(packed: Corpus, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    monkeypatch.setattr("speakerlens.training.data.crops.read_audio", noting(reads))
    BatchSource(packed, config, VARIANTS["clean"], CPU).batch(0)
    assert reads == [packed.root / PACKED] * 6  # though all would fit into data.cache_megabytes


def test_packed_corpus_is_self_contained(corpus: Corpus, packed: Corpus, tmp_path: Path) -> None:
    packed_copy = tmp_path / "elsewhere"
    packed_copy.mkdir()
    for file in packed.root.iterdir():
        (packed_copy / file.name).write_bytes(file.read_bytes())
    moved = load_corpus(packed_copy)
    assert moved.digest == packed.digest
    clip = moved.clips[3]
    assert clip.path == packed_copy / PACKED
    np.testing.assert_array_equal(
        read_audio(clip.path, clip.start, clip.duration), read_audio(corpus.clips[3].path, 0.0, 1.0)
    )


def test_other_formats_are_rounded_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time = np.arange(8000) / 8000
    soundfile.write(tmp_path / "low.wav", 0.5 * np.sin(2 * np.pi * 300 * time), 8000, subtype="PCM_16")
    splits: tuple[Split, ...] = ("train", "dev", "test")
    clips = [Clip(tmp_path / "low.wav", "utterance", split, 0.0, 1.0, "ada") for split in splits]
    write_corpus(tmp_path, clips)
    assert main(["pack", "--corpus", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "3 clips were not 16-bit at 16 kHz and were rounded" in capsys.readouterr().out
    clip = load_corpus(tmp_path / "out").clips[1]
    expected = read_audio(tmp_path / "low.wav")
    np.testing.assert_allclose(read_audio(clip.path, clip.start, clip.duration), expected, atol=0.51 / 32_768)


def test_wrong_input_is_named_and_nothing_written(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path, out: Path, message: str) -> None:
        assert main(["pack", "--corpus", str(folder), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not any(tmp_path.glob(".*unfinished"))

    refused(tmp_path / "nowhere", tmp_path / "out", "no manifest.jsonl to read")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused(corpus.root, tmp_path / "full", "full: is not empty")
    short = tmp_path / "short"
    write_corpus(short, [*corpus.clips, replace(corpus.clips[1], duration=1.5)])
    refused(short, tmp_path / "out", "has 1.00 s from 0 s on, but the manifest says 1.50 s; prepare the corpus again")
    monkeypatch.setattr(
        "speakerlens.training.data.prepare.pack.shutil.disk_usage", lambda folder: type("U", (), {"free": 1000})
    )
    refused(corpus.root, tmp_path / "out", "and its disk has 0.0 GB free")
    assert not (tmp_path / "out").exists()


def test_corrupted_write_is_detected(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def garble(folder: Path, clips: list[Clip]) -> Corpus:
        with (folder / PACKED).open("r+b") as file:
            file.seek(1000)
            file.write(b"\x55\xaa")
        return write_corpus(folder, clips)

    monkeypatch.setattr("speakerlens.training.data.prepare.pack.write_corpus", garble)
    assert main(["pack", "--corpus", str(corpus.root), "--out", str(tmp_path / "out")]) == 2
    assert "samples at 0 s differ from what was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
