"""Ranks, areas and similarity against counting, scipy and loops."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from speakerlens.training.evaluation.maps.statistics import pearson, ranks, roc_auc, ssim


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_ranks_share_ties_as_scipy_does(rng: np.random.Generator) -> None:
    values = rng.integers(0, 20, size=200).astype(np.float64)
    assert np.array_equal(ranks(values), stats.rankdata(values))


def test_auc_counts_pairs(rng: np.random.Generator) -> None:
    values, positive = rng.integers(0, 10, size=60).astype(np.float64), rng.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
    assert roc_auc(values, positive) == pytest.approx(np.mean(pairs))


def test_auc_of_perfect_reversed_constant_and_one_sided() -> None:
    positive = np.array([False, True, True])
    assert roc_auc(np.array([0.0, 1.0, 2.0]), positive) == 1.0
    assert roc_auc(np.array([2.0, 1.0, 0.0]), positive) == 0.0
    assert roc_auc(np.zeros(3), positive) == 0.5
    assert math.isnan(roc_auc(np.arange(3.0), np.ones(3, dtype=bool)))


def test_correlation_of_ranks_is_spearmans(rng: np.random.Generator) -> None:
    a = rng.integers(0, 15, size=100).astype(np.float64)
    b = a + rng.normal(0, 5, size=100)
    assert pearson(ranks(a), ranks(b)) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert math.isnan(pearson(ranks(a), ranks(np.zeros(100))))


def test_ssim_is_the_mean_over_windows() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(9, 12, generator=generator)
    other = (0.7 * one + 0.3 * torch.rand(9, 12, generator=generator)).clamp(0, 1)
    found = []
    for top in range(3):
        for left in range(6):
            x, y = (m[top : top + 7, left : left + 7].double().numpy().ravel() for m in (one, other))
            covariance = np.cov(x, y)
            luminance = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
            found.append(luminance * (2 * covariance[0, 1] + 9e-4) / (covariance[0, 0] + covariance[1, 1] + 9e-4))
    assert ssim(one, other) == pytest.approx(np.mean(found))
    assert ssim(one, one) == pytest.approx(1.0)
    assert ssim(one[:2], one[:2]) == pytest.approx(1.0)  # smaller than a window
