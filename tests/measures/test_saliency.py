"""Measures of maps: against the evaluation's formula, and on maps and noise whose answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speakerlens.measures.saliency import concentration, deletion_index, estimated_interference
from speakerlens.training.model.front_end import LogMel, frame_count
from speakerlens.training.model.saliency import deletion_index as evaluated


def test_the_deletion_index_equals_the_evaluations() -> None:
    rng = np.random.default_rng(3)
    shown, where = rng.random((4, 80, 120), np.float32), rng.random((4, 80, 120)) < 0.3
    right = evaluated(torch.from_numpy(shown), torch.from_numpy(where), torch.full((4,), 120))
    assert [deletion_index(*row) for row in zip(shown, where, strict=True)] == pytest.approx(right.tolist(), rel=1e-5)


def test_the_deletion_index_by_hand() -> None:
    shown = np.array([[1.0, 0.0], [0.0, 3.0]], np.float32)
    assert deletion_index(shown, np.array([[True, False], [False, False]])) == 0.25 / 0.25
    assert deletion_index(shown, np.array([[False, True], [False, False]])) == 0
    assert deletion_index(shown, np.ones((2, 2), bool)) == 1
    assert math.isnan(deletion_index(shown, np.zeros((2, 2), bool)))
    assert math.isnan(deletion_index(np.zeros((2, 2), np.float32), np.ones((2, 2), bool)))


def test_concentration_at_the_ends() -> None:
    assert concentration(np.ones((80, 100), np.float32)) == pytest.approx(0, abs=1e-12)
    single = np.zeros((80, 100), np.float32)
    single[3, 5] = 0.7
    assert concentration(single) == pytest.approx(1)
    assert math.isnan(concentration(np.zeros((80, 100), np.float32)))


@given(st.lists(st.floats(0, 100, width=32), min_size=2, max_size=30).filter(lambda row: sum(row) > 0))
def test_concentration_is_the_mean_difference_between_two_bins(row: list[float]) -> None:
    """Of all pairs of different bins, over twice the mean: the Gini coefficient's other definition."""
    values = np.array(row, np.float32)
    differences = np.abs(values[:, None].astype(float) - values).sum() / (len(row) * (len(row) - 1))
    assert concentration(values) == pytest.approx(differences / (2 * values.mean(dtype=float)), rel=1e-9, abs=1e-9)
    assert concentration(values * 4) == pytest.approx(concentration(values))


def log_mel(audio: np.ndarray) -> np.ndarray:
    samples = torch.from_numpy(audio.astype(np.float32))[None]
    features: np.ndarray = LogMel(80)(samples, torch.tensor([audio.size]))[0][0].numpy()
    return features[:, : int(frame_count(torch.tensor(audio.size)))]


def test_noise_is_found_and_louder_sound_is_not() -> None:
    """White noise with a chirp 20 dB above it in half of the frames of the upper rows."""
    rng = np.random.default_rng(5)
    seconds = np.arange(48_000) / 16_000
    noise = rng.normal(0, 0.01, 48_000)
    bursts = np.sin(2 * np.pi * 3000 * seconds) * ((seconds * 4).astype(int) % 2)
    plain, mixed = (estimated_interference(log_mel(sound)) for sound in (noise, noise + 0.1 * bursts))
    assert plain.mean() > 0.8
    assert mixed.mean() > 0.75
    row = int(np.argmin(np.abs(np.asarray(LogMel(80).centres_hz()) - 3000)))
    frames = (np.arange(mixed.shape[1]) * 160 + 200) / 4000
    inside = (np.abs(frames % 1 - 0.5) < 0.4) & (frames.astype(int) % 2 == 1)
    assert not mixed[row, inside].any()


def test_an_offset_per_row_has_no_effect() -> None:
    rng = np.random.default_rng(7)
    features = rng.normal(0, 1, (80, 200))
    assert (estimated_interference(features) == estimated_interference(features + rng.normal(0, 9, (80, 1)))).all()
    assert estimated_interference(np.zeros((80, 5))).all()


def test_the_floor_is_the_20th_percentile_plus_6_db() -> None:
    features = np.random.default_rng(9).normal(0, 2, (40, 38))
    floor = np.percentile(features, 20, axis=1, keepdims=True)
    assert (estimated_interference(features) == (features <= floor + 0.6 * math.log(10))).all()
    at_the_border = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 6.0 / (10.0 / math.log(10.0))]])
    assert estimated_interference(at_the_border).all()


def test_concentration_of_a_single_bin_is_undefined() -> None:
    assert math.isnan(concentration(np.ones((1, 1), np.float32)))
