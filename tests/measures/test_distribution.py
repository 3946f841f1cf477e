"""Bins that fit their values; the index of two distributions by hand, by another formula, and by its properties."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr

from speakerlens.measures.distribution import Bins, population_stability_index, quantile_bins

VALUES = st.lists(st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, math.nan])), max_size=200)
COUNTS = st.integers(1, 12).flatmap(
    lambda bins: st.tuples(*[st.lists(st.integers(0, 500), min_size=bins, max_size=bins)] * 2)
)


def test_a_value_on_an_edge_belongs_above_it() -> None:
    bins = Bins((0.0, 1.0))
    assert [bins.index(value) for value in (-math.inf, -0.1, 0.0, 0.5, 1.0, math.inf)] == [0, 0, 1, 1, 2, 2]
    assert bins.counts([-5, 0, 0.5, math.nan, 1, 7, 9]).tolist() == [1, 2, 3]
    assert Bins(()).counts([1.0, math.nan]).tolist() == [1]
    assert Bins((1.0,)).counts([]).tolist() == [0, 0]
    with pytest.raises(ValueError, match="NaN"):
        bins.index(math.nan)


def test_quantile_bins_hold_equally_many() -> None:
    values = np.random.default_rng(1).normal(0, 1, 240)
    bins = quantile_bins(values)
    assert len(bins.edges) == 9
    assert bins.counts(values).tolist() == [24] * 10
    assert quantile_bins(range(10), 2).edges == (4.5,)


def test_rounding_moves_no_value_to_another_bin() -> None:
    values = np.random.default_rng(3).uniform(0, 1, 240)
    bins = quantile_bins(values)
    for error in (-1e-7, 1e-7):
        assert bins.counts(values + error).tolist() == bins.counts(values).tolist()


@given(VALUES, st.integers(2, 20))
def test_bins_of_any_values_ascend_and_hold_them(values: list[float], wanted: int) -> None:
    bins = quantile_bins(values, wanted)
    assert all(low < high for low, high in pairwise(bins.edges))
    counts = bins.counts(values)
    assert counts.sum() == sum(not math.isnan(value) for value in values)
    assert (
        counts.tolist()
        == np.bincount(
            [bins.index(value) for value in values if not math.isnan(value)], minlength=len(bins.edges) + 1
        ).tolist()
    )


def test_a_constant_value_has_a_bin_of_its_own() -> None:
    """So that a share that was always 0 and is no longer is seen."""
    bins = quantile_bins([0.0] * 100)
    assert bins.counts([0.0] * 100 + [1e-9]).tolist() == [0, 101, 0]
    assert bins.counts([0.01, -0.01, 1e-5]).tolist() == [1, 0, 2]
    assert population_stability_index(bins.counts([0.0] * 100).tolist(), bins.counts([0.01] * 50).tolist()) > 5


def test_a_frequent_value_has_a_bin_of_its_own() -> None:
    rng = np.random.default_rng(2)
    values = [*[8000.0] * 60, *rng.uniform(5000, 7900, 40)]
    bins = quantile_bins(values)
    place = bins.index(8000.0)
    assert bins.counts(values)[place] == 60
    assert bins.index(8000.0001) == place
    assert bins.index(8001.0) == place + 1
    assert bins.index(7999.0) == place - 1
    assert len(bins.edges) == 6


def test_a_rare_value_has_no_bin_of_its_own() -> None:
    values = [*range(100), 10, 10]
    counts = quantile_bins(values).counts(values)
    assert counts.min() >= 9
    assert len(counts) == 10


def test_no_values_give_a_single_bin() -> None:
    assert quantile_bins([]) == quantile_bins([math.nan]) == Bins(())


def test_the_index_by_hand() -> None:
    """Half a value more in each bin: 10.5 and 30.5 of 41 against 20.5 and 20.5."""
    right = (20.5 - 10.5) / 41 * math.log(20.5 / 10.5) + (20.5 - 30.5) / 41 * math.log(20.5 / 30.5)
    assert population_stability_index([10, 30], [20, 20]) == pytest.approx(right)
    assert math.isnan(population_stability_index([0, 0], [3, 4]))
    assert math.isnan(population_stability_index([3, 4], [0, 0]))
    with pytest.raises(ValueError, match="2 bins and 3"):
        population_stability_index([1, 2], [1, 2, 3])


@given(COUNTS)
def test_the_index_is_the_sum_of_both_divergences(counts: tuple[list[int], list[int]]) -> None:
    expected, actual = counts
    found = population_stability_index(expected, actual)
    if not sum(expected) or not sum(actual):
        assert math.isnan(found)
        return
    p, q = ((np.array(row) + 0.5) / (np.array(row) + 0.5).sum() for row in counts)
    assert found == pytest.approx(float(rel_entr(p, q).sum() + rel_entr(q, p).sum()), abs=1e-12)
    assert found >= 0
    assert found == pytest.approx(population_stability_index(actual, expected))
    assert population_stability_index(expected, expected) == 0
    order = np.random.default_rng(0).permutation(len(expected))
    shuffled = population_stability_index([expected[i] for i in order], [actual[i] for i in order])
    assert shuffled == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize(("baseline", "traffic"), [(240, 1000), (240, 240), (1000, 200)])
def test_the_index_has_the_documented_bias(baseline: int, traffic: int) -> None:
    """(bins - 1)(1/n + 1/m), although the bins are the quantiles of one of the two."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(400):
        values = rng.normal(0, 1, baseline)
        bins = quantile_bins(values)
        counts = bins.counts(values).tolist(), bins.counts(rng.normal(0, 1, traffic)).tolist()
        found.append(population_stability_index(*counts))
    spread = 1 / baseline + 1 / traffic
    assert np.mean(found) == pytest.approx(9 * spread, rel=0.1)
    assert np.std(found) == pytest.approx(math.sqrt(18) * spread, rel=0.25)


def test_edges_of_two_values() -> None:
    """The lower value, on which edges fall, has a bin of its own; the third edge lies midway."""
    assert quantile_bins([1.0, 2.0]).edges == pytest.approx((1 - 2.5e-7, 1 + 2.5e-7, 1.5), abs=1e-10)
    assert quantile_bins([100.0, 200.0]).edges == pytest.approx((100 - 2.5e-5, 100 + 2.5e-5, 150.0), abs=1e-8)


def test_values_as_close_as_the_resolution_are_equal() -> None:
    assert quantile_bins([0.0, 1e-6]).edges == pytest.approx((-2.5e-7, 1.25e-6), abs=1e-10)


def test_a_value_that_fills_half_a_bin_has_its_own() -> None:
    values = [*range(3), 3, 3, *range(4, 19)]
    assert len(values) == 20
    assert quantile_bins(values, 5).edges[:2] == pytest.approx((3 - 0.75e-6, 3 + 0.75e-6), abs=1e-9)


def test_a_value_that_fills_less_than_half_a_bin_has_none() -> None:
    values = [*range(8), 8, 8, 8, 8, *range(9, 27)]
    assert len(values) == 30
    assert quantile_bins(values, 3).edges[0] == pytest.approx(7.5)
