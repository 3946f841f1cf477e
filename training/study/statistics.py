"""What a mean over few seeds is worth: intervals of values, and of differences that are paired by seed.

Two intervals answer two questions. Student's t over the seeds: how far would other seeds move the figure, on these
utterances? With few seeds it is wide, and has to be. The bootstrap over seeds and utterances: how far would other seeds
and other utterances move it? Seeds and utterances are crossed (every seed is heard on the same utterances), so both are
drawn, each once for all variants (the pigeonhole bootstrap of Owen, "The pigeonhole bootstrap", Annals of Applied
Statistics 2007). With few seeds it sees too little of the seeds' variance, so it does not replace the former.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from speakerlens.training.evaluation.conditions import SEED

LEVEL = 0.95

_RESAMPLES = 2000
_NOTHING = 1e-9
"""Values of the seeds that lie as close together are the same but for rounding."""


class Estimate(NamedTuple):
    """A mean and its 95 % interval.

    The ends are NaN where one value at most was there to be averaged, and equal the mean where all values were the
    same: neither says anything of what other seeds would give.
    """

    mean: float
    low: float
    high: float

    def __neg__(self) -> "Estimate":
        """The same difference the other way round."""
        return Estimate(-self.mean, -self.high, -self.low)

    def within(self, low: float, high: float) -> "Estimate":
        """The same with ends no further than the values can go."""
        return Estimate(self.mean, *(min(max(end, low), high) for end in (self.low, self.high)))

    @property
    def same(self) -> bool:
        """Whether all values were the same, so that the interval has no width.

        That comes of counting few utterances (all seeds at 100 %, or all an utterance apart): it is not known how far
        seeds would move the mean, which is not to say that they would not.
        """
        return self.low == self.high

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies wholly above or below zero, else 0; 0 too where there is none, or no width."""
        if self.same:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def over_seeds(values: NDArray[np.float64]) -> Estimate:
    """Mean and Student's t interval of one value a seed [S]; NaN values are left out. See `Estimate` for its ends.

    A paired difference is given as the differences of each seed.
    """
    found = values[np.isfinite(values)]
    if not len(found):
        return Estimate(np.nan, np.nan, np.nan)
    mean = float(found.mean())
    if len(found) == 1:
        return Estimate(mean, np.nan, np.nan)
    if np.ptp(found) <= _NOTHING:
        return Estimate(mean, mean, mean)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return Estimate(mean, mean - half, mean + half)


def resample(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw bootstrap means over seeds and utterances, [S, ..., U] -> [..., resamples].

    Every resample draws the seeds and the utterances anew, with replacement, and the same ones for all that stands
    between the two axes, so that differences along these are paired.
    """
    seeds, utterances = values.shape[0], values.shape[-1]
    rng = np.random.default_rng(SEED)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES) / seeds
    of_utterances = rng.multinomial(utterances, np.full(utterances, 1 / utterances), size=_RESAMPLES) / utterances
    by_seed = values @ of_utterances.T
    drawn: NDArray[np.float64] = np.einsum("s...r,rs->...r", by_seed, of_seeds)
    return drawn


def over_resamples(mean: float, drawn: NDArray[np.float64]) -> Estimate:
    """Give a mean the percentile interval of its bootstrap resamples [R]."""
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(mean, float(low), float(high))
