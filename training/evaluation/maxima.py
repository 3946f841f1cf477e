"""The best of N impostors: which value it reaches in a given share of the queries, for each N.

For galleries as large as the dev split has speakers it is the mean over all subsets of these. A larger one is
extrapolated: a query is close to all speakers or to few (a random effect), what remains is alike for all queries and
has a normal tail, and the share is the mean over queries of 1 - F(value)^N.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

GRID = np.linspace(-4.0, 12.0, 401)
"""Standardised cosines that the best of impostors is tabulated at."""
TAIL_FROM, TAIL_THROUGH = 0.95, 0.995
"""Quantiles of impostors that a normal tail goes through."""

Array = NDArray[np.float64]


def best_of(rows: Sequence[Array], speakers: NDArray[np.str_], galleries: Sequence[int], false_alarm: float) -> Array:
    """Return the value that the best of N impostors reaches in a share `false_alarm` of the queries, for each N.

    Args:
        rows: standardised cosines of each query's impostors.
        speakers: whose queries they are; with few speakers the values are higher, as their mean is uncertain.
        galleries: N.
        false_alarm: the share.
    """
    means = np.array([row.mean() for row in rows])
    of_speakers = np.array([means[speakers == name].mean() for name in np.unique(speakers)])
    uncertain = 2 * float(np.var(of_speakers, ddof=1)) / len(of_speakers) if len(of_speakers) > 1 else 0.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    shifts, weights = math.sqrt(uncertain) * nodes, weights / weights.sum()
    most = min(len(row) for row in rows)
    drawn = [_reached_by_subset(rows, shifts, gallery) @ weights for gallery in galleries if gallery < most]
    drawn.append(_reached_by_subset(rows, shifts, most) @ weights)
    found = [_crossing(reached, false_alarm) for reached in drawn]
    model = _random_effects(rows, shifts)
    modelled = [
        _crossing(-np.expm1(gallery * np.log1p(-model)).mean(axis=1) @ weights, false_alarm)
        for gallery in (most, *(each for each in galleries if each >= most))
    ]
    return np.array([*found[:-1], *(found[-1] + each - modelled[0] for each in modelled[1:])])


def _reached_by_subset(rows: Sequence[Array], shifts: Array, gallery: int) -> Array:
    """Return the share of queries with an impostor above each of `GRID`, [grid, shifts], in subsets of the impostors.

    The mean over all subsets of that size has a closed form, and is without bias for other galleries.
    """
    total = np.zeros((len(GRID), len(shifts)))
    for row in rows:
        # By how many are below: all of a subset are with the chance C(below, gallery) / C(all, gallery).
        counts = np.arange(len(row) + 1)
        logarithms = scipy.special.gammaln(counts + 1.0)
        subsets = logarithms[gallery:] - logarithms[: len(row) + 1 - gallery]
        above = np.ones(len(row) + 1)
        above[gallery:] -= np.exp(subsets - subsets[-1])
        total += above[np.searchsorted(np.sort(row), GRID[:, None] - shifts)]
    return total / len(rows)


def _random_effects(rows: Sequence[Array], shifts: Array) -> Array:
    """Return the chance that one impostor is above each of `GRID`, [grid, queries, shifts]: an effect of each query."""
    means = np.array([row.mean() for row in rows])
    within, variance = float(np.mean([row.var() / len(row) for row in rows])), float(means.var())
    # Each query's mean, drawn to that of all by what of its variance is due to the few impostors.
    effects = (means - means.mean()) * (max(variance - within, 0.0) / max(variance, 1e-12))
    residuals = np.sort(np.concatenate([row - effect for row, effect in zip(rows, effects, strict=True)]))
    tails = _tail(residuals, GRID[:, None, None] - effects[:, None] - shifts)
    return np.minimum(tails, 1 - 1e-12)


def _crossing(reached: Array, share: float) -> float:
    """Return the value of `GRID` at which a falling share [grid] crosses another."""
    return float(np.interp(-share, -reached, GRID))


def _tail(ordered: Array, values: Array) -> Array:
    """Return the share of a distribution above values, of which a sample in ascending order is given.

    Above `TAIL_FROM` it is that of the normal distribution that agrees there and at `TAIL_THROUGH`.
    """
    first, second = np.quantile(ordered, [TAIL_FROM, TAIL_THROUGH])
    quantiles = scipy.special.ndtri([TAIL_FROM, TAIL_THROUGH])
    deviation = max((second - first) / (quantiles[1] - quantiles[0]), 1e-6)
    above = scipy.special.ndtr(-quantiles[0] - (values - first) / deviation)
    ranks = (np.arange(len(ordered)) + 0.5) / len(ordered)
    return np.where(values > first, above, 1 - np.interp(values, ordered, ranks))
