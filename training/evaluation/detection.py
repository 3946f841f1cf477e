"""Known speakers against strangers by one score each: thresholds, the detection curve, the equal error rate.

A stranger whose score reaches the threshold is a false acceptance; a known speaker whose score does not is a miss.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_CURVE_POINTS = 200


@dataclass(frozen=True)
class DetectionPoint:
    """One point of the detection curve: shares of strangers accepted and of known speakers missed, in [0, 1]."""

    threshold: float
    false_acceptance: float
    miss: float


def threshold_for(strangers: Tensor, false_acceptance: float) -> float:
    """Give the threshold that at most a share `false_acceptance` of the strangers' scores [n] reaches.

    As many as the share allows do reach it, unless equal scores forbid; between two scores it lies in the middle.
    """
    ranked = strangers.double().sort(descending=True).values
    accepted = min(math.floor(false_acceptance * len(ranked) + 1e-9), len(ranked) - 1)
    refused = float(ranked[accepted])
    above = [score for score in ranked[:accepted].tolist() if score > refused]
    return (refused + above[-1]) / 2 if above else math.nextafter(refused, math.inf)


def detection_curve(known: Tensor, strangers: Tensor) -> tuple[DetectionPoint, ...]:
    """Give false acceptance and miss over all thresholds that matter, rising; at most 201 points.

    Args:
        known: scores of known speakers, [n].
        strangers: scores of strangers, [m].
    """
    thresholds = torch.cat([known, strangers]).double().sort().values
    if len(thresholds) > _CURVE_POINTS:
        thresholds = thresholds[torch.linspace(0, len(thresholds) - 1, _CURVE_POINTS).round().long()]
    thresholds = torch.cat([thresholds, thresholds.new_tensor([math.nextafter(float(thresholds[-1]), math.inf)])])
    missed, accepted = _error_rates(known, strangers, thresholds)
    rates = zip(thresholds.tolist(), accepted.tolist(), missed.tolist(), strict=True)
    return tuple(DetectionPoint(*point) for point in rates)


def equal_error(known: Tensor, strangers: Tensor) -> DetectionPoint:
    """Give the threshold at which as many known speakers are missed as strangers are accepted, in shares.

    Where a range of thresholds is equally good (perfect separation), it is the middle of the range.
    """
    candidates = torch.cat([known, strangers]).double().sort().values
    missed, accepted = _error_rates(known, strangers, candidates)
    gap = (missed - accepted).abs()
    best = (gap == gap.min()).nonzero().squeeze(1)
    first, last = int(best[0]), int(best[-1])
    threshold = float((candidates[first] + candidates[last]) / 2)
    return DetectionPoint(threshold, float(accepted[first]), float(missed[first]))


def _error_rates(known: Tensor, strangers: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of known speakers below each threshold, and of strangers at or above it."""
    missed = torch.searchsorted(known.double().sort().values, thresholds).double() / len(known)
    accepted = 1.0 - torch.searchsorted(strangers.double().sort().values, thresholds).double() / len(strangers)
    return missed, accepted
