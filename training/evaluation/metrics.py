"""Calibration and detection metrics: temperature, reliability diagram, thresholds, detection curve, equal error rate.

Temperature, reliability diagram and expected calibration error: Guo, Pleiss, Sun and Weinberger, "On Calibration of
Modern Neural Networks", ICML 2017. In detection, an out-of-set score that reaches the threshold is a false acceptance,
and a known speaker's score below it is a miss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor
from torch.nn import functional as F

_BINS = 15  # as in the paper
_LOWEST, _HIGHEST = 0.01, 100.0  # temperatures
_CURVE_POINTS = 200


@dataclass(frozen=True)
class ReliabilityBin:
    """A bin of the reliability diagram: the answers whose top probability lies in (low, high].

    Attributes:
        low: lower bound; high: upper bound.
        count: answers; confidence: their mean top probability; accuracy: share of correct ones; None if none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class DetectionPoint:
    """A point of the detection curve: shares of out-of-set scores accepted and of known speakers missed, in [0, 1]."""

    threshold: float
    false_acceptance: float
    miss: float


def fit_temperature(logits: Tensor, labels: Tensor, others: Sequence[Tensor] = (), weight: float = 0.0) -> float:
    """Return the temperature with the least negative log-likelihood, between 1/100 and 100.

    The likelihood is convex in the inverse temperature, so a bounded search on its logarithm finds the minimum. Where
    the bound is as good as the minimum found, the bound is returned (see `is_at_bound`).

    Args:
        logits: [n, classes].
        labels: the true classes, [n].
        others: logits of groups of utterances of no class, each [m, classes]: every class is as right as another.
        weight: of the others in the loss, each group alike, 0 to 1.
    """
    weight = weight if others else 0.0

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        known = F.cross_entropy(logits.double() / temperature, labels).item()
        groups = [-(each.double() / temperature).log_softmax(dim=1).mean().item() for each in others]
        return (1 - weight) * known + weight * sum(groups) / max(1, len(groups))

    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    found = float(scipy.optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8}).x)
    return math.exp(min((low, found, high), key=loss))


def is_at_bound(temperature: float) -> bool:
    """Return whether `fit_temperature` reached a bound: all utterances right, or uninformative scores."""
    return not _LOWEST * 1.001 < temperature < _HIGHEST / 1.001


def reliability(confidence: Tensor, correct: Tensor) -> tuple[ReliabilityBin, ...]:
    """Sort answers into 15 bins of equal width by their top probability.

    Args:
        confidence: top probabilities, [n] in (0, 1].
        correct: bool [n].
    """
    edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)
    position = torch.bucketize(confidence.double(), edges[1:-1])  # a value on an edge belongs to the bin below it
    bins = []
    for index in range(_BINS):
        inside = position == index
        count = int(inside.sum())
        mean, share = (
            (confidence.double()[inside].mean().item(), correct.double()[inside].mean().item())
            if count
            else (None, None)
        )
        bins.append(ReliabilityBin(float(edges[index]), float(edges[index + 1]), count, mean, share))
    return tuple(bins)


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the mean gap between confidence and accuracy of the bins, weighted by their answers."""
    total = sum(each.count for each in bins)
    return sum(
        each.count / total * abs(each.accuracy - each.confidence)
        for each in bins
        if each.accuracy is not None and each.confidence is not None
    )


def threshold_for(out_of_set: Tensor, false_acceptance: float) -> float:
    """Return the lowest threshold that at most a share `false_acceptance` of the out-of-set scores [n] reaches.

    As many as the share allows reach it, unless there are ties. Between two scores it is their midpoint.
    """
    ranked = out_of_set.double().sort(descending=True).values
    accepted = min(math.floor(false_acceptance * len(ranked) + 1e-9), len(ranked) - 1)
    rejected = float(ranked[accepted])
    above = [score for score in ranked[:accepted].tolist() if score > rejected]
    return (rejected + above[-1]) / 2 if above else math.nextafter(rejected, math.inf)


def detection_curve(known: Tensor, out_of_set: Tensor) -> tuple[DetectionPoint, ...]:
    """Return false acceptance and miss over rising thresholds; at most 201 points.

    Args:
        known: scores of known speakers, [n].
        out_of_set: scores of out-of-set speakers, [m].
    """
    thresholds = torch.cat([known, out_of_set]).double().sort().values
    if len(thresholds) > _CURVE_POINTS:
        thresholds = thresholds[torch.linspace(0, len(thresholds) - 1, _CURVE_POINTS).round().long()]
    thresholds = torch.cat([thresholds, thresholds.new_tensor([math.nextafter(float(thresholds[-1]), math.inf)])])
    missed, accepted = _error_rates(known, out_of_set, thresholds)
    rates = zip(thresholds.tolist(), accepted.tolist(), missed.tolist(), strict=True)
    return tuple(DetectionPoint(*point) for point in rates)


def equal_error(known: Tensor, out_of_set: Tensor) -> DetectionPoint:
    """Return the point at which miss and false acceptance are equal; arguments as for `detection_curve`.

    Where a range of thresholds is equally good (perfect separation), the threshold is the middle of the range.
    """
    candidates = torch.cat([known, out_of_set]).double().sort().values
    missed, accepted = _error_rates(known, out_of_set, candidates)
    gap = (missed - accepted).abs()
    best = (gap == gap.min()).nonzero().squeeze(1)
    first, last = int(best[0]), int(best[-1])
    threshold = float((candidates[first] + candidates[last]) / 2)
    return DetectionPoint(threshold, float(accepted[first]), float(missed[first]))


def _error_rates(known: Tensor, out_of_set: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shares of known scores below each threshold [t], and of out-of-set scores at or above it, each [t]."""
    missed = torch.searchsorted(known.double().sort().values, thresholds).double() / len(known)
    accepted = 1.0 - torch.searchsorted(out_of_set.double().sort().values, thresholds).double() / len(out_of_set)
    return missed, accepted
