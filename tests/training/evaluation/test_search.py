"""Calibration of search on simulated voices, against other voices, plain loops and reference optimisers."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
import scipy
import torch
from torch import nn

from speakerlens.export.bundle import schema
from speakerlens.measures.search import SearchCalibration
from speakerlens.training.checkpoint import Run
from speakerlens.training.config import Config, NetworkConfig, PerturbationConfig
from speakerlens.training.data.audio import SAMPLE_RATE, write_audio
from speakerlens.training.data.manifest import Clip, Corpus, Kind, write_corpus
from speakerlens.training.evaluation import search
from speakerlens.training.evaluation.maxima import best_of
from speakerlens.training.evaluation.queries import (
    LONGEST_S,
    SECONDS,
    Queries,
    Recording,
    embed_recordings,
    join_clips,
)
from speakerlens.training.evaluation.search import calibrate_search, fit_search
from speakerlens.training.evaluation.trials import compare, exemplars_of
from speakerlens.training.model.network import SpeakerNetwork

SIZE = 24


def voices(names: list[str], recordings: int, seed: int) -> Queries:
    """Return queries of simulated voices: a direction of the speaker, and deviations that grow with noise."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[Any, ...]] = []
    for number, name in enumerate(name for name in names for _ in range(recordings)):
        own = np.random.default_rng([seed, *name.encode()]).normal(size=SIZE)
        spoken = own + rng.normal(0, 0.4, SIZE)
        for seconds in SECONDS:
            for kind, snr_db in (("clean", np.nan), ("noise", float(rng.choice([20, 10, 0])))):
                noise = 0.3 / seconds + (0.0 if kind == "clean" else 10 ** (-snr_db / 20))
                heard = spoken + rng.normal(0, noise, SIZE)
                estimated = 28.0 if kind == "clean" else snr_db + rng.normal(0, 2)
                unit = heard / np.linalg.norm(heard)
                rows.append((unit, name, number, seconds, kind, snr_db, 0.6 * seconds, estimated, 8000.0))
    return Queries(*(np.array(column) for column in zip(*rows, strict=True)))


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


@cache
def fitted() -> dict[str, Any]:
    section = fit_search(voices(names("known", 30) + names("out", 16), 3, 5), names("out", 16), 0.05)
    assert section is not None
    return section


def test_section_fits_the_schema_and_is_read() -> None:
    whole = schema("bundle")
    jsonschema.validate(fitted(), {**whole["properties"]["search"], "$defs": whole["$defs"]})
    assert SearchCalibration.from_section(fitted()).speakers == 16


@pytest.mark.parametrize("gallery", [1, 10, 40, 1000])
def test_promised_false_alarms_hold_for_other_voices(gallery: int) -> None:
    calibration = SearchCalibration.from_section(fitted())
    queries = voices(names("other", 60), 2, 1)
    enrolled = exemplars_of(voices(names("enrolled", max(200, gallery)), 1, 2))
    cosines = (queries.directions @ enrolled.directions.T).reshape(len(queries), -1, gallery)
    thresholds = calibration.cosine_threshold(gallery, queries.speech_s, queries.estimated_db)
    alarms = (cosines.max(axis=2) >= thresholds[:, None]).mean(axis=1)
    for band in (queries.estimated_db >= 24, (queries.estimated_db >= 5) & (queries.estimated_db < 24)):
        assert 0.01 < float(alarms[band].mean()) < 0.07


def test_several_exemplars_do_not_raise_the_false_alarms() -> None:
    calibration = SearchCalibration.from_section(fitted())
    queries = voices(names("other", 60), 2, 1)
    enrolled = voices(names("enrolled", 20), 3, 2)
    enrolled = Queries(**{**vars(enrolled), "recordings": enrolled.recordings + 1000})
    trials = compare(queries, exemplars_of(enrolled), (3,))
    best = trials.cosines.max(axis=1)
    thresholds = calibration.cosine_threshold(20, queries.speech_s, queries.estimated_db, 3)
    assert 0.01 < float((best >= thresholds).mean()) < 0.1
    assert (thresholds > calibration.cosine_threshold(20, queries.speech_s, queries.estimated_db)).all()


def test_ratio_is_near_the_best_possible_calibration() -> None:
    calibration = SearchCalibration.from_section(fitted())
    queries = voices(names("other", 40), 3, 3)
    trials = compare(queries, exemplars_of(queries), (1,))
    tried = np.isfinite(trials.cosines)
    ratios = calibration.log_likelihood_ratio(
        np.where(tried, trials.cosines, 0), queries.speech_s[:, None], queries.estimated_db[:, None]
    )
    same, different = ratios[tried & trials.same], ratios[tried & ~trials.same]

    def cost(scale: float, offset: float) -> float:
        """Brümmer's Cllr in bits."""
        sides = np.logaddexp(0, -(scale * same + offset)).mean(), np.logaddexp(0, scale * different + offset).mean()
        return float(sum(sides) / 2 / np.log(2))

    least = scipy.optimize.minimize(lambda x: cost(*x), [1.0, 0.0], method="Nelder-Mead").fun
    assert cost(1.0, 0.0) < least + 0.03 < 0.5


def test_logistic_fit_is_that_of_a_reference_optimiser() -> None:
    rng = np.random.default_rng(0)
    inputs = np.concatenate([rng.normal(size=(300, 2)), np.ones((300, 1))], axis=1)
    label = np.where(inputs @ [2.0, -1.0, 0.3] + rng.logistic(size=300) > 0, 1.0, -1.0)
    weight = rng.uniform(0.5, 1.5, 300) / 300
    found = search._fit_logistic(inputs, label, weight)
    # Newton's method, with the same ridge.
    reference = np.zeros(3)
    for _ in range(30):
        chance = scipy.special.expit(inputs @ reference)
        gradient = inputs.T @ (weight * (chance - (label > 0))) + search.LOGISTIC_RIDGE * reference
        hessian = (inputs.T * (weight * chance * (1 - chance))) @ inputs + search.LOGISTIC_RIDGE * np.eye(3)
        reference -= np.linalg.solve(hessian, gradient)
    np.testing.assert_allclose(found, reference, atol=1e-3)


def test_best_of_independent_normal_impostors_is_their_quantile() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=400) for _ in range(100)]
    found = best_of(rows, np.array(names("x", 100)), (1, 10, 100), 0.05)
    expected = scipy.stats.norm.ppf(0.95 ** (1 / np.array([1, 10, 100])))
    np.testing.assert_allclose(found, expected, atol=0.12)


def test_few_speakers_who_differ_make_thresholds_higher() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(mean, 1, 50) for mean in (-1.0, 0.0, 1.0) for _ in range(20)]
    [apart] = best_of(rows, np.repeat(["a", "b", "c"], 20), (1,), 0.05)
    [many] = best_of(rows, np.array(names("x", 60)), (1,), 0.05)
    assert apart > many


def test_cosines_that_do_not_tell_speakers_apart_have_no_section() -> None:
    queries = voices(names("known", 5) + names("out", 4), 2, 0)
    noise = np.random.default_rng(0).normal(size=queries.directions.shape)
    blind = Queries(**{**vars(queries), "directions": noise / np.linalg.norm(noise, axis=1, keepdims=True)})
    section = fit_search(blind, names("out", 4), 0.05)
    assert section is None or max(section["slope"]) < 5


def clip(speaker: str | None, number: int, seconds: float, kind: Kind = "utterance") -> Clip:
    return Clip(Path(f"{speaker}-{number}.flac"), kind, "dev", 0.0, seconds, speaker)


def test_clips_are_joined_to_recordings_of_one_speaker() -> None:
    clips = [clip(speaker, number, 1.5) for number in range(7) for speaker in ("ada", "bob")]
    found = join_clips([*clips, clip("cy", 0, 1.2), clip("cy", 1, 1.0), clip("di", 0, 9.0)], 9)
    lengths = [(each.speaker, len(each.clips)) for each in found]
    # The seventh clip alone would be a short recording; of long clips the rest is left out.
    assert lengths == [("ada", 3), ("ada", 3), ("bob", 3), ("bob", 3), ("cy", 1), ("cy", 1), ("di", 1), ("di", 1)]
    assert [(each.start, each.duration) for each in (found[-2].clips + found[-1].clips)] == [(0, 4), (4, 4)]
    assert len(join_clips(clips, 1)) == 2


class PitchNetwork(nn.Module):
    """The embedding is the loudest frequency, as a direction."""

    def __init__(self) -> None:
        super().__init__()
        self.head = SimpleNamespace(scale=1.0)
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = zip(audio, lengths.tolist(), strict=True)
        hertz = [float(torch.fft.rfft(row[:length]).abs().argmax()) * SAMPLE_RATE / length for row, length in rows]
        angles = torch.tensor(hertz) / 2000
        return angles[:, None], torch.stack([angles.cos(), angles.sin()], dim=1)


def test_recordings_are_cut_embedded_and_measured(tmp_path: Path) -> None:
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    clips = []
    for speaker, pitch in (("ada", 500.0), ("bob", 900.0)):
        path = tmp_path / f"{speaker}.flac"
        write_audio(path, (0.3 * np.sin(2 * np.pi * pitch * time)).astype(np.float32))
        clips.append(Clip(path, "utterance", "dev", 0.0, 3.0, speaker))
    noise = tmp_path / "noise.flac"
    write_audio(noise, np.random.default_rng(0).normal(0, 0.1, 5 * SAMPLE_RATE).astype(np.float32))
    corpus = write_corpus(tmp_path, [*clips, Clip(noise, "noise", "dev", 0.0, 5.0)])
    recordings = [Recording(str(each.speaker), (each,)) for each in clips]
    found = embed_recordings(cast(SpeakerNetwork, PitchNetwork()), corpus, "dev", recordings)
    clean = found.select(found.kinds == "clean")
    assert sorted(clean.seconds) == [1.0, 1.0, 2.0, 2.0, LONGEST_S, LONGEST_S]
    assert sorted(found.select(found.kinds == "noise").snr_db) == [10.0, 20.0]
    pitches = np.where(clean.speakers == "ada", 500.0, 900.0)
    np.testing.assert_allclose(np.arctan2(*clean.directions.T[::-1]) * 2000, pitches, atol=2)
    assert (clean.bandwidth_hz < 2000).all()
    assert (exemplars_of(found).seconds == LONGEST_S).all()
    assert "telephone" not in found.kinds


def test_telephone_speech_is_a_query_and_no_exemplar(tmp_path: Path) -> None:
    """A network that was trained on it is calibrated for its bandwidth, which is else too narrow."""
    clips = []
    for number, speaker in enumerate(("ada", "bob")):
        path = tmp_path / f"{speaker}.flac"
        hiss = np.random.default_rng(number).normal(0, 0.1, 4 * SAMPLE_RATE)
        write_audio(path, hiss.astype(np.float32))
        clips.append(Clip(path, "utterance", "dev", 0.0, 4.0, speaker))
    corpus = write_corpus(tmp_path, clips)
    recordings = [Recording(str(each.speaker), (each,)) for each in clips]
    network = cast(SpeakerNetwork, PitchNetwork())
    found = embed_recordings(network, corpus, "dev", recordings, telephone=True)
    called = found.select(found.kinds == "telephone")
    assert sorted(called.speakers) == ["ada", "bob"]
    assert set(called.seconds) < set(SECONDS)
    assert np.isnan(called.snr_db).all()
    assert (called.bandwidth_hz <= 3750).all()
    assert (found.select(found.kinds == "clean").bandwidth_hz > 7000).all()
    assert set(exemplars_of(found).kinds) == {"clean"}
    assert search._limits(found)["bandwidth_hz"] <= 3500


@pytest.mark.parametrize(
    ("variant", "codec", "band", "telephone"),
    [("da", 0.5, 0.0, True), ("act-da", 0.0, 0.25, True), ("da", 0.0, 0.0, False), ("clean", 0.5, 0.25, False),
     ("wespeaker-resnet34", 0.5, 0.0, False)],
)  # fmt: skip
def test_run_knows_whether_it_trained_on_telephone_speech(
    variant: str, codec: float, band: float, telephone: bool
) -> None:
    network = NetworkConfig(blocks=(1, 1, 1, 1), width=4, embedding=8)
    config = Config(network=network, updates=1, perturbation=PerturbationConfig(codec=codec, band=band))
    run = Run(Path(), variant, config, (), cast(SpeakerNetwork, None), None, "", 1, 1, "")
    assert run.telephone is telephone


def test_corpus_without_outsiders_has_no_calibration(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, (clip("ada", 0, 1.0),), "0" * 64)
    assert calibrate_search(cast(SpeakerNetwork, PitchNetwork()), corpus, ["ada"], 0.05) is None
