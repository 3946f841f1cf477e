"""Temperature and calibration error against brute force and against cases whose answer is known."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from speakerlens.training.evaluation.metrics import expected_calibration_error, fit_temperature, reliability


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


def test_calibration_error_is_what_the_papers_formula_gives() -> None:
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


def test_honest_probabilities_have_no_error_and_boasting_ones_their_excess() -> None:
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
