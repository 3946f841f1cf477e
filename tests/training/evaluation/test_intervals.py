"""Intervals against printed tables, paired tests, and cases worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from speakerlens.training.evaluation.conditions import SEED
from speakerlens.training.evaluation.intervals import (
    Estimate,
    bootstrap_means,
    normal_interval,
    over_seeds,
    percentile_interval,
    pigeonhole_means,
    wilson,
)

T_TABLE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % point of Student's t by the number of seeds, as printed tables have it."""


@pytest.mark.parametrize("seeds", sorted(T_TABLE))
def test_the_interval_is_that_of_the_table(seeds: int) -> None:
    values = np.arange(seeds, dtype=float)
    deviation = math.sqrt(sum((value - values.mean()) ** 2 for value in values) / (seeds - 1))
    found = over_seeds(values)
    assert found.mean == pytest.approx((seeds - 1) / 2)
    assert found.high - found.mean == pytest.approx(T_TABLE[seeds] * deviation / math.sqrt(seeds), rel=2e-4)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_paired_difference_matches_the_paired_t_test() -> None:
    one, other = np.array([0.71, 0.69, 0.74, 0.70, 0.73]), np.array([0.70, 0.66, 0.73, 0.69, 0.70])
    interval = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert over_seeds(one - other)[1:] == pytest.approx((interval.low, interval.high))


def test_one_seed_has_no_interval() -> None:
    found = over_seeds(np.array([0.3]))
    assert found.mean == 0.3
    assert math.isnan(found.low) and math.isnan(found.high)
    assert found.sign == 0


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.02, 0.02, 0.02], [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0]])
def test_equal_seeds_have_no_sign(values: list[float]) -> None:
    """An interval without width comes of counting few utterances, not of seeds that do not matter."""
    found = over_seeds(np.array(values))
    assert found.mean == pytest.approx(values[0])
    assert found.same
    assert found.sign == (-found).sign == 0


def test_seeds_that_differ_by_little_are_not_the_same() -> None:
    found = over_seeds(np.array([0.5, 0.5 + 1e-6]))
    assert not found.same
    assert found.sign == 1


def test_missing_values_are_left_out() -> None:
    assert over_seeds(np.array([1.0, np.nan, 3.0])) == over_seeds(np.array([1.0, 3.0]))
    assert math.isnan(over_seeds(np.array([np.nan])).mean)


@pytest.mark.parametrize(("low", "high", "sign"), [(0.1, 0.3, 1), (-0.3, -0.1, -1), (-0.1, 0.3, 0), (0.0, 0.3, 0)])
def test_sign_needs_an_interval_that_excludes_zero(low: float, high: float, sign: int) -> None:
    assert Estimate((low + high) / 2, low, high).sign == sign


def test_pigeonhole_variance_is_that_of_seeds_and_utterances() -> None:
    """For x[s, u] = a[s] + b[u], the bootstrap variance of the mean is var(a) / S + var(b) / U."""
    rng = np.random.default_rng(0)
    seeds, utterances = rng.normal(size=6), 3 * rng.normal(size=50)
    drawn = pigeonhole_means((seeds[:, None] + utterances)[:, None, :])[0]
    expected = seeds.var() / 6 + utterances.var() / 50
    assert drawn.var() == pytest.approx(expected, rel=0.1)
    assert drawn.mean() == pytest.approx(seeds.mean() + utterances.mean(), abs=3 * math.sqrt(expected / 2000))


def test_resamples_are_paired_between_variants() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((4, 1, 30))
    one, other = pigeonhole_means(np.concatenate([values, values + 0.25], axis=1))
    assert np.allclose(other - one, 0.25)
    assert percentile_interval(other - one) == pytest.approx((0.25, 0.25))
    assert np.ptp(one) > 0.1


def test_the_percentiles_are_those_of_the_level() -> None:
    assert percentile_interval(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))


def test_bootstrap_means_are_those_of_resampled_utterances() -> None:
    values = np.random.default_rng(3).random((2, 17))
    rng = np.random.default_rng(SEED)
    expected = np.stack([values[:, rng.integers(17, size=17)].mean(axis=1) for _ in range(1000)], axis=1)
    np.testing.assert_allclose(bootstrap_means(values), expected, atol=1e-12)
    assert bootstrap_means(values[:, :1]).shape == (2, 1000)


def test_normal_interval_is_that_of_the_standard_error() -> None:
    values = np.array([0.2, 0.4, 0.6])
    half = 1.959964 * 0.2 / math.sqrt(3)
    assert normal_interval(values) == pytest.approx((0.4 - half, 0.4 + half), rel=1e-6)
    assert normal_interval(np.array([0.3, 0.3])) == (0.3, 0.3)
    assert math.isnan(normal_interval(np.array([0.3]))[0])


@pytest.mark.parametrize(("hits", "trials"), [(3, 17), (0, 20), (29, 29)])
def test_wilson_matches_scipy_for_whole_counts(hits: int, trials: int) -> None:
    expected = stats.binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert wilson(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
