"""Temperature, calibration error, thresholds and detection curves, against counting and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from speakerlens.training.evaluation.metrics import (
    detection_curve,
    equal_error,
    expected_calibration_error,
    fit_temperature,
    is_at_bound,
    reliability,
    threshold_for,
)

SCORES = st.lists(st.integers(-20, 20).map(lambda value: value / 20), min_size=1, max_size=40)


@given(scores=SCORES, rate=st.sampled_from([0.0, 0.05, 0.1, 0.5, 0.9]))
def test_threshold_accepts_the_given_share_and_no_more(scores: list[float], rate: float) -> None:
    def accepted(threshold: float) -> int:
        return sum(score >= threshold for score in scores)

    found = accepted(threshold_for(torch.tensor(scores, dtype=torch.float64), rate))
    allowed = [count for threshold in [*scores, 2.0] if (count := accepted(threshold)) <= rate * len(scores) + 1e-9]
    assert found == max(allowed)


def test_the_threshold_lies_between_the_scores() -> None:
    assert threshold_for(torch.tensor([0.1, 0.2, 0.3, 0.7]), 0.25) == pytest.approx(0.5)
    assert threshold_for(torch.tensor([0.1, 0.2, 0.3, 0.7]), 0.0) == pytest.approx(0.7, abs=1e-6)


@given(known=SCORES, out_of_set=SCORES)
def test_detection_curve_matches_counting(known: list[float], out_of_set: list[float]) -> None:
    curve = detection_curve(torch.tensor(known), torch.tensor(out_of_set))
    # The scores as the function sees them: float32.
    low, high = (np.array(scores, dtype=np.float32).astype(float) for scores in (known, out_of_set))
    for point in curve:
        assert point.miss == pytest.approx(np.mean(low < point.threshold))
        assert point.false_acceptance == pytest.approx(np.mean(high >= point.threshold))
    assert curve[0].miss == 0.0
    assert (curve[-1].false_acceptance, curve[-1].miss) == (0.0, 1.0)
    assert sorted(curve, key=lambda point: point.threshold) == list(curve)


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    curve = detection_curve(torch.randn(3000, generator=generator) + 1, torch.randn(2000, generator=generator))
    assert len(curve) == 201
    assert (curve[0].false_acceptance, curve[0].miss) == (1.0, 0.0)
    assert (curve[-1].false_acceptance, curve[-1].miss) == (0.0, 1.0)


def test_the_equal_error_is_where_the_errors_balance() -> None:
    generator = torch.Generator().manual_seed(1)
    known, out_of_set = 2 + torch.randn(3000, generator=generator), torch.randn(5000, generator=generator)
    found = equal_error(known, out_of_set)
    assert found.miss == pytest.approx(float((known < found.threshold).float().mean()), abs=1e-3)
    assert found.false_acceptance == pytest.approx(float((out_of_set >= found.threshold).float().mean()), abs=1e-3)
    assert abs(found.miss - found.false_acceptance) < 0.005
    assert found.threshold == pytest.approx(1.0, abs=0.1)  # halfway between two equal bells
    assert found.miss == pytest.approx(0.1587, abs=0.02)  # of the normal distribution beyond one deviation


def test_separable_scores_have_the_threshold_between_them() -> None:
    found = equal_error(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([1.0, 2.0]))
    assert 2.0 < found.threshold <= 5.0
    assert (found.miss, found.false_acceptance) == (0.0, 0.0)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(true_temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 6, generator=generator)
    labels = torch.multinomial((logits / true_temperature).softmax(dim=1), 1, generator=generator).squeeze(1)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(true_temperature, rel=0.08)
    losses = {t: F.cross_entropy(logits.double() / t, labels).item() for t in np.geomspace(0.1, 10, 200)}
    best = min(losses.values())
    assert F.cross_entropy(logits.double() / found, labels).item() <= best + 1e-6


def test_calibration_error_matches_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(0.2, 1, 500), rng.random(500) < 0.6
    expected = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    bins = reliability(torch.from_numpy(confidence), torch.from_numpy(right))
    assert expected_calibration_error(bins) == pytest.approx(expected)
    assert sum(each.count for each in bins) == 500
    assert bins[0].count == 0
    assert bins[0].accuracy is None
    assert (bins[0].low, bins[-1].high) == (0.0, 1.0)


def test_calibration_error_of_overconfident_probabilities() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.3, 0.8, 200_000)
    right = torch.from_numpy(rng.random(len(confidence)) < confidence)
    honest = reliability(torch.from_numpy(confidence), right)
    boasting = reliability(torch.from_numpy(confidence + 0.15), right)
    assert expected_calibration_error(honest) < 0.01
    assert expected_calibration_error(boasting) == pytest.approx(0.15, abs=0.01)


def test_edges_belong_to_the_bin_below() -> None:
    bins = reliability(torch.tensor([1 / 15, 1.0], dtype=torch.float64), torch.tensor([True, False]))
    assert [each.count for each in bins] == [1, *[0] * 13, 1]


def test_temperature_is_that_of_a_golden_section_search() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 5 * torch.randn(300, 6, generator=generator)
    labels = torch.where(torch.rand(300, generator=generator) < 0.8, logits.argmax(dim=1), torch.zeros(300).long())
    low, high, ratio = math.log(0.01), math.log(100.0), (math.sqrt(5) - 1) / 2

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / math.exp(log_temperature), labels).item()

    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    assert fit_temperature(logits, labels) == pytest.approx(math.exp((low + high) / 2), rel=1e-6)


def test_temperature_of_extreme_scores_is_at_a_bound() -> None:
    labels = torch.tensor([0, 1, 2])
    perfect = 1000.0 * torch.eye(3)
    assert is_at_bound(fit_temperature(perfect, labels))
    assert is_at_bound(fit_temperature(-perfect, labels))
    assert not is_at_bound(1.0)


def test_utterances_of_no_class_raise_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    logits = torch.randn(200, 4, generator=generator) + 4 * F.one_hot(labels, 4)
    others = 3 * torch.randn(100, 4, generator=generator)
    alone = fit_temperature(logits, labels)
    assert fit_temperature(logits, labels, [others], 0.0) == pytest.approx(alone)
    temperatures = [fit_temperature(logits, labels, [others, others[:7]], weight) for weight in (0.01, 0.05, 0.5)]
    assert alone < temperatures[0] < temperatures[1] < temperatures[2]
