"""Intervals against tables, scipy's own test and a case that can be worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from speakerlens.training.evaluation.intervals import Estimate, over_seeds, percentile_interval, pigeonhole_means

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


def test_a_paired_difference_is_scipys_paired_t_test() -> None:
    one, other = np.array([0.71, 0.69, 0.74, 0.70, 0.73]), np.array([0.70, 0.66, 0.73, 0.69, 0.70])
    interval = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert over_seeds(one - other)[1:] == pytest.approx((interval.low, interval.high))


def test_one_seed_has_no_interval_and_says_nothing() -> None:
    found = over_seeds(np.array([0.3]))
    assert found.mean == 0.3
    assert math.isnan(found.low) and math.isnan(found.high)
    assert found.sign == 0


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.02, 0.02, 0.02], [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0]])
def test_seeds_that_all_have_the_same_prove_nothing(values: list[float]) -> None:
    """An interval without width comes of counting few utterances, not of seeds that do not matter."""
    found = over_seeds(np.array(values))
    assert found.mean == pytest.approx(values[0])
    assert found.same
    assert found.sign == (-found).sign == 0


def test_seeds_that_differ_by_little_are_not_the_same() -> None:
    found = over_seeds(np.array([0.5, 0.5 + 1e-6]))
    assert not found.same
    assert found.sign == 1


def test_values_that_are_missing_are_left_out() -> None:
    assert over_seeds(np.array([1.0, np.nan, 3.0])) == over_seeds(np.array([1.0, 3.0]))
    assert math.isnan(over_seeds(np.array([np.nan])).mean)


@pytest.mark.parametrize(("low", "high", "sign"), [(0.1, 0.3, 1), (-0.3, -0.1, -1), (-0.1, 0.3, 0), (0.0, 0.3, 0)])
def test_the_sign_is_told_only_if_the_interval_leaves_zero_out(low: float, high: float, sign: int) -> None:
    assert Estimate((low + high) / 2, low, high).sign == sign


def test_resamples_of_what_seeds_and_utterances_add_have_the_variance_of_both() -> None:
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
