"""95 % intervals of shares, of means over utterances, and of means over seeds.

They answer three questions:

* How far would other utterances of these speakers move a figure? `wilson` for a share, `bootstrap_means` for means over
  conditions and their differences.
* How far would training from other seeds move it, on these utterances? `over_seeds`, Student's t. With few seeds this
  interval is wide.
* How far would other seeds and other utterances move it? `pigeonhole_means`. Seeds and utterances are crossed (every
  seed is tested on the same utterances), so both are resampled (Owen, "The pigeonhole bootstrap", Annals of Applied
  Statistics 2007). With few seeds it underestimates the variance between seeds, so it does not replace Student's t.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from speakerlens.training.evaluation.conditions import SEED

LEVEL = 0.95

Interval = tuple[float, float]

_UTTERANCE_RESAMPLES = 1000
_SEED_RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 100  # bounds memory where a split has thousands of utterances
_SAME = 1e-9  # seeds whose values lie this close together differ by rounding only


class Estimate(NamedTuple):
    """A mean and its 95 % interval.

    The ends are NaN where at most one value was averaged, and equal the mean where all values were the same: neither
    says how far other seeds would move the mean.
    """

    mean: float
    low: float
    high: float

    def __neg__(self) -> "Estimate":
        """Return the difference with its sides exchanged."""
        return Estimate(-self.mean, -self.high, -self.low)

    def clipped(self, low: float, high: float) -> "Estimate":
        """Return the estimate with the ends of its interval clipped to the possible values."""
        return Estimate(self.mean, *(min(max(end, low), high) for end in (self.low, self.high)))

    @property
    def same(self) -> bool:
        """Whether all values were the same, so that the interval has no width.

        This happens where few utterances are counted (all seeds at 100 %, for example).
        """
        return self.low == self.high

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes zero, else 0; 0 also where there is no interval, or one without width."""
        if self.same:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def wilson(hits: float, trials: int) -> Interval:
    """Return the Wilson score interval of a share (Wilson, JASA 1927).

    scipy computes it for whole counts only; here `hits` may be a mean over several conditions.
    """
    z2 = float(scipy.special.ndtri(0.5 + LEVEL / 2)) ** 2
    share = hits / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2) / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    # Exactly 0 and 1 at the ends, where rounding would leave a remainder.
    return (0.0 if hits == 0 else centre - half, 1.0 if hits == trials else centre + half)


def normal_interval(values: NDArray[np.float64]) -> Interval:
    """Return the interval of the mean of values [N] from its standard error; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    low, high = (
        scipy.stats.norm.interval(LEVEL, values.mean(), scipy.stats.sem(values)) if np.ptp(values) else (values[0],) * 2
    )
    return float(low), float(high)


def bootstrap_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return bootstrap means over utterances, [row, utterance] -> [row, resample].

    Every resample draws the same utterances for all rows, so differences between rows are paired.
    """
    if values.shape[1] == 1:
        return np.repeat(values, _UTTERANCE_RESAMPLES, axis=1)
    means: NDArray[np.float64] = scipy.stats.bootstrap(
        (values,),
        np.mean,
        axis=-1,
        n_resamples=_UTTERANCE_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
        batch=_RESAMPLES_AT_ONCE,
    ).bootstrap_distribution
    return means


def percentile_interval(resampled: NDArray[np.float64]) -> Interval:
    """Return the central 95 % of resampled values [R]."""
    low, high = np.percentile(resampled, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def over_seeds(values: NDArray[np.float64]) -> Estimate:
    """Return the mean and Student's t interval of one value per seed [S]; NaN values are left out.

    For a paired difference, give the differences per seed.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(finite.mean())
    if len(finite) == 1:
        return Estimate(mean, math.nan, math.nan)
    if np.ptp(finite) <= _SAME:
        return Estimate(mean, mean, mean)
    low, high = scipy.stats.ttest_1samp(finite, 0.0).confidence_interval(LEVEL)
    return Estimate(mean, float(low), float(high))


def pigeonhole_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return bootstrap means over seeds and utterances, [seed, ..., utterance] -> [..., resample].

    Every resample draws seeds and utterances with replacement, the same ones for all entries between these two axes, so
    differences along those are paired.
    """
    seeds, utterances = values.shape[0], values.shape[-1]
    rng = np.random.default_rng(SEED)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_SEED_RESAMPLES) / seeds
    of_utterances = rng.multinomial(utterances, np.full(utterances, 1 / utterances), size=_SEED_RESAMPLES) / utterances
    by_seed = values @ of_utterances.T
    means: NDArray[np.float64] = np.einsum("s...r,rs->...r", by_seed, of_seeds)
    return means
