"""Mixtures depend on the utterance and the condition only."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speakerlens.training.data.audio import read_audio, read_sound, write_audio
from speakerlens.training.data.manifest import Clip, Corpus, load_corpus
from speakerlens.training.data.mixing import KINDS
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import (
    CLEAN,
    LABELS,
    SNRS_DB,
    Condition,
    batches,
    generator,
    grid,
    mixtures,
    supplied_grid,
)
from tests.training.toy import SPEAKERS

Made = dict[tuple[int, Condition], tuple[Tensor, Tensor, Tensor]]


def make(
    corpus: Corpus, conditions: list[Condition], batch_size: int, utterances: tuple[Clip, ...] | None = None
) -> Made:
    """Audio, speech and interference of each utterance and condition, without padding."""
    made: Made = {}
    for batch in mixtures(corpus, "train", SPEAKERS, conditions, batch_size, utterances):
        for row, (index, length) in enumerate(zip(batch.indices.tolist(), batch.lengths.tolist(), strict=True)):
            parts = tuple(part[row, :length] for part in batch.mixture)
            assert all(part[row, length:].abs().sum() == 0 for part in batch.mixture)
            made[index, batch.condition] = (parts[0], parts[1], parts[2])
    return made


@pytest.fixture(scope="module")
def uneven(toy_corpus: Path) -> Corpus:
    """The toy corpus with utterances of different lengths, so that batches are padded."""
    corpus = load_corpus(toy_corpus)
    clips = tuple(
        Clip(clip.path, clip.kind, clip.split, 0.0, clip.duration * (1 - 0.05 * (number % 9)), clip.speaker)
        if clip.kind == "utterance"
        else clip
        for number, clip in enumerate(corpus.clips)
    )
    return Corpus(corpus.root, clips, corpus.digest)


@pytest.fixture(scope="module")
def one_by_one(uneven: Corpus) -> Made:
    conditions = list(supplied_grid(uneven, "train")[0])
    return {key: parts for condition in conditions for key, parts in make(uneven, [condition], 1).items()}


def test_the_grid_is_clean_speech_and_six_kinds_at_six_ratios() -> None:
    conditions = grid()
    assert len(conditions) == len(set(conditions)) == 37
    assert conditions[0] == CLEAN
    kinds = (*KINDS, "reverb+noise")
    assert {(c.kind, c.snr_db) for c in conditions[1:]} == {(k, s) for k in kinds for s in (20, 15, 10, 5, 0, -5)}
    assert all(condition.kind in LABELS for condition in conditions)


def test_missing_kinds_are_left_out_with_a_reason(toy_corpus: Path) -> None:
    conditions, left_out = supplied_grid(load_corpus(toy_corpus), "test")
    assert {condition.kind for condition in conditions} == {"clean", "noise", "speaker", "reverb", "reverb+noise"}
    assert set(left_out) == {"music", "babble"}
    assert "test split" in left_out["music"] and "music" in left_out["music"]


@pytest.mark.parametrize(
    ("removed", "reason"),
    [
        ({"rir"}, "the test split has no room impulse responses"),
        ({"rir", "noise"}, "the test split has no room impulse responses and no clips of kind noise"),
    ],
)
def test_two_kinds_at_once_need_both(toy_corpus: Path, removed: set[str], reason: str) -> None:
    corpus = load_corpus(toy_corpus)
    without = Corpus(corpus.root, tuple(clip for clip in corpus.clips if clip.kind not in removed), corpus.digest)
    conditions, left_out = supplied_grid(without, "test")
    assert "reverb+noise" not in {condition.kind for condition in conditions}
    assert left_out["reverb+noise"] == reason


@settings(deadline=None, max_examples=8)
@given(data=st.data(), batch_size=st.integers(1, 9))
def test_a_mixture_does_not_depend_on_batch_or_order(
    uneven: Corpus, one_by_one: Made, data: st.DataObject, batch_size: int
) -> None:
    everything = uneven.utterances("train")
    conditions = data.draw(
        st.lists(st.sampled_from(supplied_grid(uneven, "train")[0]), min_size=1, max_size=6, unique=True)
    )
    order = data.draw(st.lists(st.integers(0, len(everything) - 1), min_size=1, max_size=6, unique=True))
    made = make(uneven, conditions, batch_size, tuple(everything[index] for index in order))
    assert set(made) == {(place, condition) for place in range(len(order)) for condition in conditions}
    for (place, condition), parts in made.items():
        for part, reference in zip(parts, one_by_one[order[place], condition], strict=True):
            assert torch.equal(part, reference)


def test_a_mixture_does_not_depend_on_the_corpus_folder(toy_corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_corpus, tmp_path / "moved")
    conditions = [Condition("noise", 0.0), Condition("reverb", 5.0)]
    here, there = (make(load_corpus(folder), conditions, 4) for folder in (toy_corpus, tmp_path / "moved"))
    assert all(torch.equal(here[key][0], there[key][0]) for key in here)


def test_random_numbers_are_the_same_on_every_machine(toy_corpus: Path) -> None:
    corpus = load_corpus(toy_corpus)
    clip = next(clip for clip in corpus.clips if clip.path.name == "ada-0.flac")
    seed = int(hashlib.sha256(b"230516070|noise|ada-0.flac|0.0|1.0").hexdigest(), 16)
    assert generator(corpus, "noise", clip).random() == np.random.default_rng(seed).random()


def test_ratios_are_what_was_asked_for(one_by_one: Made) -> None:
    for (_, condition), (audio, speech, interference) in one_by_one.items():
        torch.testing.assert_close(audio, speech + interference, atol=1e-7, rtol=0)
        if condition.snr_db is None:
            assert interference.abs().sum() == 0
        elif condition.kind in KINDS:
            assert decibels(speech, interference) == pytest.approx(condition.snr_db, abs=0.1)


def decibels(speech: Tensor, interference: Tensor) -> float:
    energies = [float(part.double().square().sum()) for part in (speech, interference)]
    return float(10 * np.log10(energies[0] / energies[1]))


def test_noise_in_a_room_combines_room_and_noise(one_by_one: Made) -> None:
    for index in range(3):
        for snr in SNRS_DB:
            parts = {}
            for condition in (Condition("reverb", 0.0), Condition("noise", snr), Condition("reverb+noise", snr)):
                audio, speech, interference = one_by_one[index, condition]
                scale = speech.double().norm() / one_by_one[index, CLEAN][0].double().norm()  # 1 unless it would clip
                parts[condition.kind] = interference.double() / scale
            expected = parts["reverb"] + parts["noise"]
            torch.testing.assert_close(parts["reverb+noise"], expected, atol=1e-5, rtol=1e-4)
            assert audio.abs().max() <= 1.0


def test_clean_speech_is_the_file(uneven: Corpus, one_by_one: Made) -> None:
    for index, clip in enumerate(uneven.utterances("train")):
        np.testing.assert_array_equal(
            one_by_one[index, CLEAN][0].numpy(), read_sound(clip.path, clip.start, clip.duration)
        )


def test_a_constant_offset_of_the_recordings_changes_no_mixture(toy_corpus: Path, tmp_path: Path) -> None:
    """Louder than the speech, it would otherwise count as speech, and the interference would be that much too loud."""
    shutil.copytree(toy_corpus, tmp_path / "offset")
    for path in (tmp_path / "offset").glob("*.flac"):
        if not path.name.startswith("room"):
            write_audio(path, read_audio(path) + 0.2)
    conditions = list(supplied_grid(load_corpus(toy_corpus), "train")[0])
    plain, offset = (make(load_corpus(folder), conditions, 4) for folder in (toy_corpus, tmp_path / "offset"))
    for key, (audio, *_) in plain.items():
        torch.testing.assert_close(offset[key][0], audio, atol=1e-3, rtol=0)


def test_along_a_curve_only_the_level_changes(one_by_one: Made) -> None:
    for kind in ("noise", "speaker", "reverb"):
        sounds = torch.stack([one_by_one[0, Condition(kind, snr)][2].double() for snr in SNRS_DB])
        assert torch.corrcoef(sounds).min() > 0.999999


def test_different_utterances_get_different_noise(one_by_one: Made) -> None:
    first, second = (one_by_one[index, Condition("noise", 0.0)][2][:8000] for index in (0, 1))
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.5


def test_labels_follow_the_order_of_the_speakers(uneven: Corpus) -> None:
    backwards = SPEAKERS[::-1]
    for batch in mixtures(uneven, "train", backwards, [CLEAN], 4):
        assert [backwards[label] for label in batch.labels] == [clip.speaker for clip in batch.clips]


def test_unknown_speaker_is_refused(uneven: Corpus) -> None:
    with pytest.raises(UserError, match="cyd is not among the 2"):
        next(mixtures(uneven, "train", SPEAKERS[:2], [CLEAN], 4))


def test_long_utterances_make_small_batches() -> None:
    seconds = [100.0, 3.0, 100.0, 100.0, 2.0, 500.0]
    clips = [Clip(Path(f"{i}.flac"), "utterance", "test", 0.0, s, "ada") for i, s in enumerate(seconds)]
    assert batches(clips, 4) == [[4, 1], [0, 2], [3], [5]]
