"""How far probabilities can be believed: temperature, reliability diagram, expected calibration error.

After Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_BINS = 15  # as in the paper
_LOWEST, _HIGHEST = 0.01, 100.0  # temperatures


@dataclass(frozen=True)
class ReliabilityBin:
    """A bar of the reliability diagram: the answers whose top probability lies in (low, high].

    Attributes:
        low: lower bound; high: upper bound.
        count: answers; confidence: their mean top probability; accuracy: share of them that was right; None if none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Give the temperature with the least negative log-likelihood, between 1/100 and 100.

    The likelihood is convex in the inverse temperature, so a golden-section search on its logarithm finds the minimum.

    Args:
        logits: [n, classes].
        labels: the true classes, [n].
    """

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / math.exp(log_temperature), labels).item()

    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    for _ in range(40):
        # Where all is right by far, the likelihood is one to the last digit below some temperature: on to the bound.
        if loss(left) <= loss(right):
            high, right = right, left
            left = high - ratio * (high - low)
        else:
            low, left = left, right
            right = low + ratio * (high - low)
    return math.exp((low + high) / 2)


def is_at_bound(temperature: float) -> bool:
    """Whether `fit_temperature` stopped at a bound of its search: no utterance was wrong, or nothing was told apart."""
    return not _LOWEST * 1.001 < temperature < _HIGHEST / 1.001


def reliability(confidence: Tensor, right: Tensor) -> tuple[ReliabilityBin, ...]:
    """Sort answers into 15 bins of equal width by their top probability.

    Args:
        confidence: top probabilities, [n] in (0, 1].
        right: whether each answer was right, bool [n].
    """
    edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)
    position = torch.bucketize(confidence.double(), edges[1:-1])  # a value on an edge belongs to the bin below it
    bins = []
    for index in range(_BINS):
        inside = position == index
        count = int(inside.sum())
        mean, share = (
            (confidence.double()[inside].mean().item(), right.double()[inside].mean().item()) if count else (None, None)
        )
        bins.append(ReliabilityBin(float(edges[index]), float(edges[index + 1]), count, mean, share))
    return tuple(bins)


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Give the mean gap between confidence and accuracy of the bins, each weighed by its answers."""
    total = sum(each.count for each in bins)
    return sum(
        each.count / total * abs(each.accuracy - each.confidence)
        for each in bins
        if each.accuracy is not None and each.confidence is not None
    )
