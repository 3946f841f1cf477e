"""How far the variants' probabilities can be believed, and how they tell strangers, over seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from speakerlens.training.evaluation.intervals import Estimate, over_seeds
from speakerlens.training.evaluation.metrics import DetectionPoint, ReliabilityBin
from speakerlens.training.study.measuring import Calibrated, Findings
from speakerlens.training.study.plan import Plan


@dataclass(frozen=True)
class Calibrating:
    """Calibration of the variants: set on dev utterances, measured on test utterances.

    Attributes:
        figures: by variant, then by one of `FIGURES`, over seeds.
        changes: by (variant, reference), then likewise: differences, paired by seed.
        before, after: by variant, the reliability diagram of all seeds' answers together, before and after the
            temperature.
        curves: by variant, the detection curve of each seed.
        false_acceptance: share of strangers that was asked to reach the threshold on dev.
        strangers: who they are, and how many in the test split.
    """

    figures: dict[str, dict[str, Estimate]]
    changes: dict[tuple[str, str], dict[str, Estimate]]
    before: dict[str, tuple[ReliabilityBin, ...]]
    after: dict[str, tuple[ReliabilityBin, ...]]
    curves: dict[str, tuple[tuple[DetectionPoint, ...], ...]]
    false_acceptance: float
    strangers: str


FIGURES: dict[str, Callable[[Calibrated], float]] = {
    "temperature": lambda one: one.calibration.temperature,
    "threshold": lambda one: one.calibration.threshold,
    "ece_before": lambda one: one.report.ece_before,
    "ece_after": lambda one: one.report.ece_after,
    "nll_before": lambda one: one.report.nll_before,
    "nll_after": lambda one: one.report.nll_after,
    "equal_error": lambda one: (one.report.equal_error.false_acceptance + one.report.equal_error.miss) / 2,
    "false_acceptance": lambda one: one.report.points[0].false_acceptance,
    "miss": lambda one: one.report.points[0].miss,
    "misidentified": lambda one: one.report.points[0].misidentified,
}
"""The last three at the threshold, over all conditions."""


def compare_calibration(plan: Plan, findings: Findings) -> Calibrating:
    """Put the seeds' calibrations together."""
    of = {v: [findings.calibration[run] for run in plan.runs if run.variant == v] for v in plan.variants}
    values = {
        variant: {name: np.array([figure(one) for one in seeds]) for name, figure in FIGURES.items()}
        for variant, seeds in of.items()
    }
    first = findings.calibration[plan.runs[0]]
    report = first.report
    return Calibrating(
        figures={variant: {name: over_seeds(found[name]) for name in FIGURES} for variant, found in values.items()},
        changes={
            (ours, theirs): {name: over_seeds(values[ours][name] - values[theirs][name]) for name in FIGURES}
            for theirs, ours in combinations(plan.variants, 2)
        },
        before={variant: _together([one.report.bins_before for one in seeds]) for variant, seeds in of.items()},
        after={variant: _together([one.report.bins_after for one in seeds]) for variant, seeds in of.items()},
        curves={variant: tuple(one.report.curve for one in seeds) for variant, seeds in of.items()},
        false_acceptance=first.calibration.false_acceptance,
        strangers=f"{report.stranger_speakers} {report.strangers}",
    )


def _together(diagrams: Sequence[tuple[ReliabilityBin, ...]]) -> tuple[ReliabilityBin, ...]:
    """Pool the answers in each bin of several diagrams."""
    pooled = []
    for bins in zip(*diagrams, strict=True):
        count = sum(each.count for each in bins)
        confidence, accuracy = (
            sum(each.count * (value or 0.0) for each, value in zip(bins, values, strict=True)) / count
            if count
            else None
            for values in ([each.confidence for each in bins], [each.accuracy for each in bins])
        )
        pooled.append(ReliabilityBin(bins[0].low, bins[0].high, count, confidence, accuracy))
    return tuple(pooled)
