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
CONFIDENCE = 0.9
"""With which other speakers reach the value in no greater share, one-sided."""
TAIL_FROM, TAIL_THROUGH = 0.95, 0.995
"""Quantiles of impostors that a normal tail goes through."""

Array = NDArray[np.float64]


def best_of(rows: Sequence[Array], speakers: NDArray[np.str_], galleries: Sequence[int], false_alarm: float) -> Array:
    """Return the value that the best of N impostors reaches in a share `false_alarm` of the queries, for each N.

    Args:
        rows: standardised cosines of each query's impostors.
        speakers: whose queries they are; with few speakers, who differ, the values are higher.
        galleries: N.
        false_alarm: the share.
    """
    names, of = np.unique(speakers, return_inverse=True)
    own = (of == np.arange(len(names))[:, None]) / np.bincount(of)[:, None]
    most = min(len(row) for row in rows)
    small = [gallery for gallery in galleries if gallery < most]
    found = [_crossing(_upper(own @ _reached_by_subset(rows, gallery)), false_alarm) for gallery in (*small, most)]
    model = _random_effects(rows)
    modelled = [
        _crossing(_upper(own @ -np.expm1(gallery * np.log1p(-model))), false_alarm)
        for gallery in (most, *galleries[len(small) :])
    ]
    return np.array([*found[:-1], *(found[-1] + each - modelled[0] for each in modelled[1:])])


def _upper(shares: Array) -> Array:
    """Return an upper bound of the mean over speakers of shares [speakers, grid], by Student's t.

    With few speakers the share is uncertain, and the promise has to hold for others.
    """
    count = len(shares)
    if count == 1:
        return np.asarray(shares[0])
    factor = float(scipy.special.stdtrit(count - 1, CONFIDENCE)) / math.sqrt(count)
    return np.asarray(shares.mean(axis=0) + factor * shares.std(axis=0, ddof=1))


def _reached_by_subset(rows: Sequence[Array], gallery: int) -> Array:
    """Return the chance of an impostor above each of `GRID`, [queries, grid], in subsets of each query's impostors.

    The mean over all subsets of that size has a closed form, and is without bias for other galleries.
    """
    chances = np.empty((len(rows), len(GRID)))
    for place, row in enumerate(rows):
        # By how many are below: all of a subset are with the chance C(below, gallery) / C(all, gallery).
        logarithms = scipy.special.gammaln(np.arange(len(row) + 1) + 1.0)
        subsets = logarithms[gallery:] - logarithms[: len(row) + 1 - gallery]
        above = np.ones(len(row) + 1)
        above[gallery:] -= np.exp(subsets - subsets[-1])
        chances[place] = above[np.searchsorted(np.sort(row), GRID)]
    return chances


def _random_effects(rows: Sequence[Array]) -> Array:
    """Return the chance that one impostor is above each of `GRID`, [queries, grid]: an effect of each query."""
    means = np.array([row.mean() for row in rows])
    within, variance = float(np.mean([row.var() / len(row) for row in rows])), float(means.var())
    # Each query's mean, drawn to that of all by what of its variance is due to the few impostors.
    effects = (means - means.mean()) * (max(variance - within, 0.0) / max(variance, 1e-12))
    residuals = np.sort(np.concatenate([row - effect for row, effect in zip(rows, effects, strict=True)]))
    return np.minimum(_tail(residuals, GRID - effects[:, None]), 1 - 1e-12)


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
