import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from speakerlens.training.cli import main
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio
from speakerlens.training.data.manifest import MANIFEST, load_corpus
from speakerlens.training.data.prepare import demo_voices
from speakerlens.training.data.prepare.demo import draw_sentences, split_counts
from speakerlens.training.data.prepare.demo_interference import NOISES, coloured_noise, make_music, make_noise
from speakerlens.training.data.prepare.demo_voices import (
    OUTSIDERS,
    SPEAKERS,
    Espeak,
    Voice,
    distinct_voices,
    espeak_files,
    waveform_distance,
)
from speakerlens.training.errors import UserError
from tests.training.conftest import prepare_small_demo

SMALL = ("--speakers", "4", "--utterances-per-speaker", "4")


def prepare(out: Path, *arguments: str) -> int:
    return main(["prepare", "demo", "--out", str(out), *arguments])


def test_demo_has_the_requested_speakers_and_splits(demo_corpus: Path) -> None:
    corpus = load_corpus(demo_corpus)
    assert len(corpus.speakers) == 4
    assert [len(corpus.utterances(split)) for split in ("train", "dev", "test")] == [8, 4, 4]
    for kind in ("noise", "music", "speech", "rir"):
        parts = [{clip.path for clip in corpus.interference(kind, split)} for split in ("train", "dev", "test")]
        assert all(parts)
        assert len(set.union(*parts)) == sum(map(len, parts))
    talkers = [{clip.speaker for clip in corpus.interference("speech", split)} for split in ("train", "dev", "test")]
    assert len(set.union(*talkers)) == sum(map(len, talkers))
    assert not set.union(*talkers) & set(corpus.speakers)
    assert min(map(len, talkers)) >= 3, "too few for a threshold"


def test_demo_levels_and_pauses_resemble_recordings(demo_corpus: Path) -> None:
    for clip in load_corpus(demo_corpus).clips:
        if clip.kind not in ("utterance", "speech"):
            continue
        samples = read_audio(clip.path)
        assert clip.duration == pytest.approx(len(samples) / SAMPLE_RATE)
        assert 1.5 < clip.duration < 7
        assert -35 < 20 * np.log10(np.sqrt(np.mean(samples**2))) < -12
        assert np.abs(samples).max() < 0.97
        frames = np.sqrt(np.mean(samples[: len(samples) // 160 * 160].reshape(-1, 160) ** 2, axis=1))
        assert frames.min() > 0  # no digital silence
        loud = frames > 0.1 * np.sqrt(np.mean(samples**2))
        assert loud.mean() > 0.5
        assert np.argmax(loud) < 20  # speech within 0.2 s


def test_splits_share_no_sentence(demo_corpus: Path) -> None:
    texts: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for line in (demo_corpus / "transcript.tsv").read_text().splitlines():
        path, text = line.split("\t")
        texts[path.split("/")[-1].split("-")[0]].add(text)
    assert all(texts.values())
    assert len(set.union(*texts.values())) == sum(map(len, texts.values()))


def test_same_settings_give_a_bit_identical_corpus(demo_corpus: Path, tmp_path: Path) -> None:
    """Also for breathy voices, whose noise espeak-ng would seed by the clock."""
    assert "f2" not in {voice.variant for voice in SPEAKERS[:4]}
    assert "Alicia" in {voice.variant for voice in SPEAKERS[:4]}
    assert prepare_small_demo(tmp_path / "again") == 0
    files = sorted(path.relative_to(demo_corpus) for path in demo_corpus.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    different = [
        path for path in files if (demo_corpus / path).read_bytes() != (tmp_path / "again" / path).read_bytes()
    ]
    assert different == []


def test_finished_demo_is_reused(demo_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (demo_corpus / MANIFEST).stat()
    assert prepare(demo_corpus, *SMALL) == 0
    assert "reused" in capsys.readouterr().out
    assert (demo_corpus / MANIFEST).stat() == before


def test_demo_of_other_settings_is_not_overwritten(demo_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(demo_corpus, *SMALL, "--seed", "1") == 2
    error = capsys.readouterr().err
    assert "made with other settings (speakers 4, utterances per speaker 4, seed 0" in error
    assert "seed 1" in error


def test_folder_with_other_files_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose")
    assert prepare(tmp_path) == 2
    assert "is neither empty nor a demo corpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--speakers", "1"), "--speakers must be from 2 to"),
        (("--speakers", "1000"), "--speakers must be from 2 to"),
        (("--utterances-per-speaker", "2"), "--utterances-per-speaker must be at least 3"),
        (("--seed", "-1"), "--seed must be at least 0, not -1"),
    ],
)
def test_wrong_settings_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], complaint: str
) -> None:
    assert prepare(tmp_path / "out", *arguments) == 2
    assert complaint in capsys.readouterr().err


def test_missing_voices_name_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert prepare(tmp_path / "out", *SMALL) == 2
    assert "install the extra `demo`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_too_few_distinct_voices_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    unknown = tuple(Voice("en", f"nobody{number}") for number in range(3))
    monkeypatch.setattr(demo_voices, "SPEAKERS", (*SPEAKERS[:2], *unknown))
    monkeypatch.setattr("speakerlens.training.data.prepare.demo.SPEAKERS", (*SPEAKERS[:2], *unknown))
    assert prepare(tmp_path / "out", "--speakers", "5") == 2
    captured = capsys.readouterr()
    assert "nobody0, nobody1, nobody2" in captured.out.replace("\n", " ")
    assert "only 2 speakers" in captured.err


def test_unknown_and_identical_variants_are_detected() -> None:
    pytest.importorskip("espeakng_loader")
    f1, steph, steph2, nobody = (Voice("en", name) for name in ("f1", "steph", "steph2", "no-such-voice"))
    assert distinct_voices([f1, nobody, steph, steph2]) == ([f1, steph], [nobody, steph2])


def test_all_candidate_voices_are_distinct() -> None:
    pytest.importorskip("espeakng_loader")
    distinct, same = distinct_voices([*SPEAKERS, *OUTSIDERS])
    assert same == []
    assert len(SPEAKERS) >= 30
    assert len({voice.variant.lower() for voice in distinct}) == len(distinct)


def test_unknown_accent_is_refused() -> None:
    pytest.importorskip("espeakng_loader")
    with espeak_files() as (library, data), pytest.raises(UserError, match="no voice xx-nowhere"):
        Espeak(library, data).say(Voice("xx-nowhere", ""), "Hello.")


def test_waveform_distance_of_equal_and_unrelated() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 5000)).astype(np.float32)
    assert waveform_distance(one, 3 * one) == pytest.approx(0, abs=1e-5)
    assert waveform_distance(one, other) == pytest.approx(np.sqrt(2), abs=0.05)
    assert waveform_distance(one, other[:-1]) == 2


def test_sentences_are_distinct_and_complete() -> None:
    sentences = draw_sentences(500, np.random.default_rng(0))
    assert len(set(sentences)) == 500
    assert all(text[0].isupper() and text[-1] in ".?" and "{" not in text for text in sentences)
    assert all(7 <= len(text.split()) <= 16 for text in sentences)
    assert sentences == draw_sentences(500, np.random.default_rng(0))


def test_every_split_gets_at_least_one() -> None:
    assert split_counts(20) == {"train": 14, "dev": 2, "test": 4}
    assert split_counts(3) == {"train": 1, "dev": 1, "test": 1}


@pytest.mark.parametrize("slope", [0.0, 3.0, 6.0])
def test_coloured_noise_has_the_requested_slope(slope: float) -> None:
    noise = coloured_noise(2**18, slope, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    hertz = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    octaves = [10 * np.log10(power[(hertz >= low) & (hertz < 2 * low)].mean()) for low in (100, 200, 400, 800, 1600)]
    assert -np.diff(octaves).mean() == pytest.approx(slope, abs=0.3)


@pytest.mark.parametrize("sort", NOISES)
def test_noises_have_no_silent_part_and_their_length(sort: str) -> None:
    for seed in range(3):
        noise = make_noise(sort, 3.0, np.random.default_rng(seed))
        assert noise.shape == (48_000,)
        assert np.abs(noise).max() == pytest.approx(0.7, abs=1e-3)
        seconds = np.sqrt(np.mean(noise.reshape(3, -1) ** 2, axis=1))
        assert seconds.min() > 1e-3


def test_music_is_tonal() -> None:
    for seed in range(3):
        music = make_music(4.0, np.random.default_rng(seed))
        assert music.shape == (64_000,)
        power = np.sort(np.abs(np.fft.rfft(music * np.hanning(len(music)))) ** 2)[::-1]
        assert power[: len(power) // 50].sum() > 0.9 * power.sum()  # white noise would have 10 % there


def test_record_contains_the_settings(demo_corpus: Path) -> None:
    record = json.loads((demo_corpus / "demo.json").read_text())
    assert record == {"speakers": 4, "utterances_per_speaker": 4, "seed": 0, "recipe": 3}
