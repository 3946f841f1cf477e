"""Calibration on tones with one pitch per speaker, by a network with known scores."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speakerlens.training.checkpoint import load_run
from speakerlens.training.data.audio import SAMPLE_RATE, write_audio
from speakerlens.training.data.manifest import Clip, Corpus, Kind, Split, load_corpus, write_corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation import noise
from speakerlens.training.evaluation.calibration import calibrate, measure_calibration
from speakerlens.training.evaluation.predictions import prediction_steps
from speakerlens.training.model.network import SpeakerNetwork

KNOWN = {"ada": 500.0, "bob": 1000.0}
SECONDS = 0.5
SCALE = 8.0
DEV_AND_TEST: tuple[Split, ...] = ("dev", "test")


class PitchNetwork(nn.Module):
    """The score of a speaker falls with the distance, in octaves, between the pitch and the loudest frequency."""

    def __init__(self, sharpness: float = 1.0) -> None:
        super().__init__()
        self.head = SimpleNamespace(scale=SCALE)
        self.pitches = nn.Parameter(torch.tensor(list(KNOWN.values())).log2(), requires_grad=False)
        self.sharpness = sharpness

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        loudest = torch.stack(
            [
                torch.fft.rfft(row[:length]).abs().argmax() * SAMPLE_RATE / length
                for row, length in zip(audio, lengths.tolist(), strict=True)
            ]
        )
        distance = (loudest.log2()[:, None] - self.pitches).abs()
        return self.sharpness * SCALE * (1 - distance), distance


def network(sharpness: float = 1.0) -> SpeakerNetwork:
    return cast(SpeakerNetwork, PitchNetwork(sharpness))


class Builder:
    """Writes a corpus of tones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clips: list[Clip] = []

    def add(
        self, pitch: float, split: Split, speaker: str | None, kind: Kind = "speech", seconds: float = SECONDS
    ) -> None:
        path = self.folder / f"{len(self.clips)}.flac"
        time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        write_audio(path, (0.3 * np.sin(2 * np.pi * pitch * time)).astype(np.float32))
        self.clips.append(Clip(path, kind, split, 0.0, len(time) / SAMPLE_RATE, speaker))

    def add_known(self, split: Split, detune: float = 1.0) -> None:
        for speaker, pitch in KNOWN.items():
            self.add(pitch * detune, split, speaker, "utterance")

    def write(self) -> Corpus:
        return write_corpus(self.folder, self.clips)


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made noises are far from every speaker: some are tones, which this network takes for speakers."""
    rumble = np.sin(2 * np.pi * 20 * np.arange(8000) / SAMPLE_RATE).astype(np.float32)
    monkeypatch.setattr(noise, "made_noises", lambda: [rumble])


@pytest.fixture
def tones(tmp_path: Path) -> Corpus:
    """Known speakers at their pitch; three out-of-set speakers per split, at growing distances below 500 Hz."""
    builder = Builder(tmp_path)
    splits: tuple[Split, ...] = ("train", "dev", "test")
    for split in splits:
        for detune in (1.0, 1.01, 0.99):
            builder.add_known(split, detune)
    for step in range(20):
        builder.add(500 * 2 ** -(0.2 + 0.02 * step), "dev", f"zoe-{step % 3}")
    for octaves in (0.1, 0.3, 0.6):
        builder.add(500 * 2**-octaves, "test", f"yan-{octaves}")
    return builder.write()


def test_noise_near_a_speaker_raises_the_threshold(tones: Corpus) -> None:
    builder = Builder(tones.root)
    builder.clips = list(tones.clips)
    for octaves in (0.05, 0.5):
        builder.add(500 * 2**-octaves, "dev", None, "noise")
    found = calibrate(network(), builder.write(), tuple(KNOWN), 0.1)
    assert found.threshold == pytest.approx(1 - 0.05, abs=0.005)
    assert (found.noises, found.noise_acceptance) == (3, 0.02)


def test_threshold_accepts_the_given_share_of_out_of_set(tones: Corpus) -> None:
    steps: list[int] = []
    found = calibrate(network(), tones, tuple(KNOWN), 0.1, lambda: steps.append(1))
    # Scores 1 - octaves: two of twenty are accepted, those at 0.2 and 0.22 octaves; the next is at 0.24.
    assert found.threshold == pytest.approx(1 - 0.23, abs=0.005)
    assert (found.strangers, found.stranger_speakers, found.stranger_utterances) == ("held-out speakers", 3, 20)
    assert (found.false_acceptance, found.utterances) == (0.1, 6)
    assert len(steps) == prediction_steps(tones, "dev", tuple(KNOWN), torch.device("cpu"))


def test_the_report_counts_what_the_threshold_does_on_test(tones: Corpus) -> None:
    calibration = dataclasses.replace(calibrate(network(), tones, tuple(KNOWN)), threshold=0.8)
    steps: list[int] = []
    report = measure_calibration(network(), tones, tuple(KNOWN), calibration, lambda: steps.append(1))
    assert len(steps) == prediction_steps(tones, "test", tuple(KNOWN), torch.device("cpu"))
    clean = next(point for point in report.points if point.condition == "clean")
    assert clean.false_acceptance == pytest.approx(1 / 3)  # the one at 0.1 octaves
    assert clean.false_acceptance_interval[0] < 1 / 3 < clean.false_acceptance_interval[1]
    assert (clean.miss, clean.misidentified) == (0.0, 0.0)
    assert (clean.known, clean.strangers) == (6, 3)
    # Under the out-of-set voice at 20, 10 or 0 dB, the known speaker is the louder or as loud.
    assert {"all", "clean", "speaker"} <= {point.condition for point in report.points}
    assert report.top1 > 0.7
    assert report.curve[-1].miss == 1.0
    json.dumps(dataclasses.asdict(report), allow_nan=False)


def test_misses_and_misidentifications_are_counted_apart(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    builder.add_known("dev")
    builder.add(500, "test", "ada", "utterance")
    builder.add(1000, "test", "ada", "utterance")  # sounds like bob
    builder.add(707, "test", "bob", "utterance")  # half an octave from both
    builder.add(707.2, "test", "bob", "utterance")
    corpus = builder.write()
    calibration = dataclasses.replace(calibrate(network(), corpus, tuple(KNOWN)), threshold=0.9)
    clean = measure_calibration(network(), corpus, tuple(KNOWN), calibration).points[1]
    assert clean.condition == "clean"
    assert clean.miss == pytest.approx(0.5)
    assert clean.misidentified == pytest.approx(0.25)


def test_temperature_corrects_overconfidence(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    for split in DEV_AND_TEST:
        for _ in range(3):
            builder.add_known(split)
        builder.add(1000, split, "ada", "utterance")  # one of seven is always wrong
    corpus = builder.write()
    overconfident = network(sharpness=10.0)
    calibration = calibrate(overconfident, corpus, tuple(KNOWN))
    report = measure_calibration(overconfident, corpus, tuple(KNOWN), calibration)
    assert calibration.temperature > 5
    assert report.ece_before > 0.1
    assert report.ece_after < report.ece_before / 2
    assert report.nll_after < report.nll_before
    assert sum(each.count for each in report.bins_after) == sum(each.count for each in report.bins_before)


def test_without_out_of_set_speakers_known_ones_stand_in(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    for split in DEV_AND_TEST:
        builder.add_known(split)
    corpus = builder.write()
    found = calibrate(network(), corpus, tuple(KNOWN))
    assert found.strangers == "known speakers with their own class left out"
    assert (found.stranger_speakers, found.stranger_utterances) == (2, 2)
    report = measure_calibration(network(), corpus, tuple(KNOWN), found)
    assert report.strangers == found.strangers


def test_which_clips_count_as_out_of_set(tmp_path: Path) -> None:
    """Unnamed and known talkers and very short clips do not count; long clips are cut."""
    builder = Builder(tmp_path)
    builder.add_known("dev")
    builder.add(700, "dev", None)
    builder.add(700, "dev", "ada")
    builder.add(700, "dev", "zoe", seconds=0.1)
    builder.add(700, "train", "yan")
    corpus = builder.write()
    assert calibrate(network(), corpus, tuple(KNOWN)).strangers == "known speakers with their own class left out"
    builder.add(700, "dev", "zoe", seconds=3.0)
    builder.add(250, "dev", "xia")
    two = calibrate(network(), builder.write(), tuple(KNOWN))
    assert two.strangers == "known speakers with their own class left out", "two speakers are too few"
    assert (two.stranger_speakers, two.stranger_utterances) == (2, 2)
    builder.add(300, "dev", "wim")
    longer = builder.write()
    lengths: list[int] = []
    tested = network()
    tested.register_forward_pre_hook(lambda module, inputs: lengths.extend(inputs[1].tolist()))
    found = calibrate(tested, longer, tuple(KNOWN))
    assert (found.strangers, found.stranger_speakers, found.stranger_utterances) == ("held-out speakers", 3, 3)
    assert max(lengths) == SECONDS * SAMPLE_RATE


def test_a_trained_network_is_calibrated_and_measured(toy_runs: dict[str, Path]) -> None:
    run = load_run(toy_runs["act-da"])
    corpus = load_corpus(run.corpus)
    calibration = calibrate(run.network, corpus, run.speakers)
    report = measure_calibration(run.network, corpus, run.speakers, calibration)
    assert -1 <= calibration.threshold <= 1, "a cosine"
    kinds = ["noise", "speaker", "reverb", "reverb+noise"]
    assert [point.condition for point in report.points] == ["all", "clean", *kinds]


def test_empty_split_is_named(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    builder.add_known("train")
    with pytest.raises(UserError, match="its dev split is empty"):
        calibrate(network(), builder.write(), tuple(KNOWN))
