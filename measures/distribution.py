"""Histograms, and the distance between two of them."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESOLUTION = 1e-6
"""Values closer than this, relative to their size or to 1, are equal. Far more than the difference between two runtimes
in a share or probability of exactly 0 or 1, far less than one clipped sample in a second."""

PSEUDOCOUNT = 0.5


@dataclass(frozen=True)
class Bins:
    """Bins between ascending inner edges; the first and the last bin are open.

    A value on an edge belongs to the bin above it.
    """

    edges: tuple[float, ...]

    def index(self, value: float) -> int:
        """Return the bin of a value, 0 to len(edges).

        Raises:
            ValueError: the value is NaN.
        """
        if math.isnan(value):
            raise ValueError("NaN is in no bin")
        return bisect_right(self.edges, value)

    def counts(self, values: Iterable[float]) -> NDArray[np.int64]:
        """Return the number of values in each bin, int64 [len(edges) + 1]; NaN is ignored."""
        known = _known(values)
        places = np.searchsorted(np.asarray(self.edges), known, side="right")
        return np.bincount(places, minlength=len(self.edges) + 1).astype(np.int64)


def quantile_bins(values: Iterable[float], bins: int = 10) -> Bins:
    """Return bins that hold about equally many of these values.

    Edges lie midway between two values, so that rounding moves none to another bin. A value on which an edge would
    fall, and that is frequent enough to fill half a bin, gets a narrow bin of its own: so a share that was always 0
    and no longer is becomes visible. If all values are equal there are three bins, the middle one with all of them.

    Args:
        values: finite or NaN, in any order; NaN is ignored. Without values there is a single bin.
        bins: number of bins wanted.
    """
    known = np.sort(_known(values))
    if not len(known):
        return Bins(())
    # A run of equal values is [first, last] in the sorted array.
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
    """Return the sum over bins of (actual - expected) ln(actual / expected), both as shares of their totals.

    0 for equal shares; by convention, below 0.1 nothing has changed and above 0.25 much has (Siddiqi, "Credit Risk
    Scorecards", 2006). It is the symmetric divergence of Kullback and Leibler ("On information and sufficiency", 1951).
    Half a value is added to every bin, so that an empty bin gives a large number instead of infinity.

    Two samples of n and m values from one distribution do not give 0: the index is approximately chi-squared with
    bins - 1 degrees of freedom, times 1/n + 1/m. Its mean is (bins - 1) (1/n + 1/m), its standard deviation
    sqrt(2 (bins - 1)) (1/n + 1/m) (Yurdakul and Naranjo, "Statistical properties of the population stability index",
    Journal of Risk Model Validation 14(4), 2020).

    Args:
        expected_counts: of the baseline, [bins].
        actual_counts: in the same bins, [bins].

    Returns:
        NaN if either has no values.

    Raises:
        ValueError: the numbers of bins differ.
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
