"""Distributions as counts in bins, and how far one has moved from another."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESOLUTION = 1e-6
"""Values this near to one another, relative to their size or to 1, are one: far more than two runtimes differ by in a
share or a probability that is exactly 0 or 1 in both, far less than one clipped sample in a second."""

PSEUDOCOUNT = 0.5


@dataclass(frozen=True)
class Bins:
    """Bins between inner edges, ascending; the first and the last bin are open.

    A value on an edge belongs to the bin above it.
    """

    edges: tuple[float, ...]

    def index(self, value: float) -> int:
        """Which bin a value is in, from 0 to len(edges).

        Raises:
            ValueError: it is NaN, which is in none.
        """
        if math.isnan(value):
            raise ValueError("NaN is in no bin")
        return bisect_right(self.edges, value)

    def counts(self, values: Iterable[float]) -> NDArray[np.int64]:
        """How many values each bin holds, [len(edges) + 1]; NaN is left out."""
        known = _known(values)
        places = np.searchsorted(np.asarray(self.edges), known, side="right")
        return np.bincount(places, minlength=len(self.edges) + 1).astype(np.int64)


def quantile_bins(values: Iterable[float], bins: int = 10) -> Bins:
    """Bins that hold about equally many of these values.

    Edges lie midway between two values, so that rounding moves none to the next bin. A value on which an edge would
    fall, and that enough share to fill half a bin, gets a narrow one of its own: a share that was always 0 and no
    longer is shows. All values alike give three bins, of which the middle one has them.

    Args:
        values: finite or NaN, in any order; NaN is left out. No values give a single bin.
        bins: how many are wanted.
    """
    known = np.sort(_known(values))
    if not len(known):
        return Bins(())
    # Where one value ends and the next, different one begins; a run of values is [first, last] of the sorted ones.
    firsts = np.flatnonzero(np.diff(known, prepend=-math.inf) > _resolution(known))
    lasts = np.append(firsts[1:], len(known)) - 1
    edges: set[float] = set()
    for place in np.rint(np.arange(1, bins) * (len(known) / bins)).astype(int).clip(0, len(known) - 1):
        run = int(np.searchsorted(firsts, place, side="right")) - 1
        low, high = known[firsts[run]], known[lasts[run]]
        shared = place > firsts[run] and 2 * bins * (lasts[run] - firsts[run] + 1) >= len(known)
        if shared or run == 0:
            edges |= {float(low - _resolution(low) / 4), float(high + _resolution(high) / 4)}
        else:
            edges.add(float(low + known[lasts[run - 1]]) / 2)
    return Bins(tuple(sorted(edges)))


def population_stability_index(expected_counts: Sequence[int], actual_counts: Sequence[int]) -> float:
    """The sum over the bins of (actual - expected) ln(actual / expected), both as shares of their totals.

    0 where the two are alike; the usual reading is that below 0.1 nothing has changed, and above 0.25 much. (Siddiqi,
    "Credit Risk Scorecards", 2006; it is the symmetric divergence of Kullback and Leibler, "On information and
    sufficiency", 1951.) Every bin counts half a value more than it holds, so that an empty one gives a large number
    and not an infinite one.

    Two samples of n and m values of one distribution do not give 0: the index is then about chi-squared with one
    degree of freedom less than there are bins, times 1/n + 1/m. So it is (bins - 1) (1/n + 1/m) in the mean, with a
    standard deviation of sqrt(2 (bins - 1)) (1/n + 1/m) (Yurdakul and Naranjo, "Statistical properties of the
    population stability index", Journal of Risk Model Validation 14(4), 2020).

    Args:
        expected_counts: of the baseline, by bin.
        actual_counts: of the same bins.

    Returns:
        NaN where one of the two holds nothing.

    Raises:
        ValueError: they are not of the same bins.
    """
    expected, actual = np.asarray(expected_counts, np.float64), np.asarray(actual_counts, np.float64)
    if expected.shape != actual.shape:
        raise ValueError(f"{expected.size} bins and {actual.size} cannot be compared")
    if not expected.sum() or not actual.sum():
        return math.nan
    p, q = ((counts + PSEUDOCOUNT) / (counts + PSEUDOCOUNT).sum() for counts in (expected, actual))
    return float(((q - p) * np.log(q / p)).sum())


def _known(values: Iterable[float]) -> NDArray[np.float64]:
    array = np.fromiter(values, np.float64)
    return array[~np.isnan(array)]


def _resolution(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return RESOLUTION * np.maximum(1.0, np.abs(values))
