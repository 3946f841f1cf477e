"""Calibration and open-set detection of the variants, over seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from speakerlens.training.evaluation.intervals import Estimate, over_seeds
from speakerlens.training.evaluation.metrics import DetectionPoint, ReliabilityBin
from speakerlens.training.study.measurements import Calibrated, Measurements
from speakerlens.training.study.plan import Plan


@dataclass(frozen=True)
class CalibrationResults:
    """Calibration of the variants: set on dev utterances, measured on test utterances.

    Attributes:
        figures: by variant, then by one of `FIGURES`, over seeds.
        changes: by (variant, reference), then likewise: differences, paired by seed.
        before, after: by variant, the reliability diagram of all seeds' answers, before and after temperature scaling.
        curves: by variant, the detection curve of each seed.
        false_acceptance: share of out-of-set utterances that may reach the threshold on dev.
        strangers: who the out-of-set speakers are, and how many in the test split.
    """

    figures: dict[str, dict[str, Estimate]]
    changes: dict[tuple[str, str], dict[str, Estimate]]
    before: dict[str, tuple[ReliabilityBin, ...]]
    after: dict[str, tuple[ReliabilityBin, ...]]
    curves: dict[str, tuple[tuple[DetectionPoint, ...], ...]]
    false_acceptance: float
    strangers: str


FIGURES: dict[str, Callable[[Calibrated], float]] = {
    "temperature": lambda run: run.calibration.temperature,
    "threshold": lambda run: run.calibration.threshold,
    "ece_before": lambda run: run.report.ece_before,
    "ece_after": lambda run: run.report.ece_after,
    "nll_before": lambda run: run.report.nll_before,
    "nll_after": lambda run: run.report.nll_after,
    "equal_error": lambda run: (run.report.equal_error.false_acceptance + run.report.equal_error.miss) / 2,
    "false_acceptance": lambda run: run.report.points[0].false_acceptance,
    "miss": lambda run: run.report.points[0].miss,
    "misidentified": lambda run: run.report.points[0].misidentified,
}
"""The last three are at the threshold, over all conditions."""


def compare_calibration(plan: Plan, measured: Measurements) -> CalibrationResults:
    """Average the calibrations of all runs over seeds, and compare every two variants."""
    of = {v: [measured.calibration[run] for run in plan.runs if run.variant == v] for v in plan.variants}
    values = {
        variant: {name: np.array([figure(run) for run in seeds]) for name, figure in FIGURES.items()}
        for variant, seeds in of.items()
    }
    first = measured.calibration[plan.runs[0]]
    return CalibrationResults(
        figures={variant: {name: over_seeds(by_seed[name]) for name in FIGURES} for variant, by_seed in values.items()},
        changes={
            (one, other): {name: over_seeds(values[one][name] - values[other][name]) for name in FIGURES}
            for other, one in combinations(plan.variants, 2)
        },
        before={variant: _pooled([run.report.bins_before for run in seeds]) for variant, seeds in of.items()},
        after={variant: _pooled([run.report.bins_after for run in seeds]) for variant, seeds in of.items()},
        curves={variant: tuple(run.report.curve for run in seeds) for variant, seeds in of.items()},
        false_acceptance=first.calibration.false_acceptance,
        strangers=f"{first.report.stranger_speakers} {first.report.strangers}",
    )


def _pooled(diagrams: Sequence[tuple[ReliabilityBin, ...]]) -> tuple[ReliabilityBin, ...]:
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
