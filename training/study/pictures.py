"""The study's own figures: accuracy over ratios, dev curves, reliability, detection. All written as SVG."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from speakerlens.training.evaluation.comparison.figures import STYLE, looks, robustness_figure
from speakerlens.training.evaluation.conditions import SNRS_DB
from speakerlens.training.evaluation.intervals import Interval
from speakerlens.training.evaluation.metrics import ReliabilityBin
from speakerlens.training.study.accuracy import Accuracy
from speakerlens.training.study.calibrating import Calibrating
from speakerlens.training.study.convergence import Convergence
from speakerlens.training.study.plan import Plan

_COLUMNS = 3
STUDY_STYLE = {**STYLE, "svg.hashsalt": "study"}  # the same file for the same numbers


@dataclass(frozen=True)
class _Curves:
    """Accuracy over seeds, as `robustness_figure` wants it."""

    about: Mapping[str, object]
    variants: tuple[str, ...]
    kinds: tuple[str, ...]
    accuracy: Accuracy
    snrs_db: tuple[float, ...] = SNRS_DB

    def top1(self, variant: str, kind: str, snr_db: float | None) -> tuple[float, Interval | None]:
        """Mean over seeds, and its interval within [0, 1]."""
        mean, low, high = self.accuracy.cells[variant, kind, snr_db]
        return mean, None if np.isnan(low) else (max(0.0, low), min(1.0, high))


def accuracy_figure(
    plan: Plan, kinds: tuple[str, ...], accuracy: Accuracy, about: Mapping[str, object], path: Path
) -> None:
    """Draw top-1 by ratio with bands over seeds."""
    with rc_context(STUDY_STYLE):
        robustness_figure(_Curves(about, plan.variants, kinds, accuracy), path)


def dev_figure(plan: Plan, found: Convergence, path: Path) -> None:
    """Draw accuracy on the dev split over updates: a thin line a run, a thick one for the mean of a variant."""
    with rc_context(STUDY_STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        axis = figure.subplots()
        for variant, (colour, _) in looks(plan.variants).items():
            curves = [curve for run, curve in found.curves.items() if run.variant == variant and curve.updates]
            for curve in curves:
                axis.plot(curve.updates, curve.accuracy, color=colour, linewidth=0.7, alpha=0.45)
            if curves:
                mean = np.mean([curve.accuracy for curve in curves], axis=0)
                axis.plot(curves[0].updates, mean, color=colour, linewidth=2.2, label=variant)
        axis.set_xlabel("updates")
        axis.set_ylabel(f"top-1 on {found.on} dev crops")
        axis.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axis.set_ylim(-2, 102)
        axis.grid(axis="y", color="#dddddd", linewidth=0.8)
        axis.legend(loc="lower right", frameon=False, ncols=2)
        figure.savefig(path)


def reliability_figure(plan: Plan, found: Calibrating, path: Path) -> None:
    """Draw confidence against accuracy, a panel a variant, before and after the temperature."""
    columns = min(_COLUMNS, len(plan.variants))
    rows = -(-len(plan.variants) // columns)
    with rc_context(STUDY_STYLE):
        figure = Figure(figsize=(0.8 + 3.1 * columns, 0.6 + 3.1 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, (variant, (colour, _)) in zip(axes.flat, looks(plan.variants).items(), strict=False):
            _draw_reliability(axis, found.before[variant], "#999999", "as trained")
            _draw_reliability(axis, found.after[variant], colour, "with its temperature")
            axis.plot([0, 1], [0, 1], color="#666666", linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
            axis.set_title(variant, fontweight="bold")
            axis.set_xlabel("probability of the best")
            axis.tick_params(labelbottom=True)
            axis.legend(loc="upper left", frameon=False, fontsize=8)
            for share in (axis.xaxis, axis.yaxis):
                share.set_major_formatter(PercentFormatter(1.0))
        for axis in list(axes.flat)[len(plan.variants) :]:
            axis.remove()
        for axis in axes[:, 0]:
            axis.set_ylabel("share that was right")
        figure.savefig(path)


def _draw_reliability(axis: Axes, bins: tuple[ReliabilityBin, ...], colour: str, label: str) -> None:
    full = [each for each in bins if each.count]
    total = sum(each.count for each in full)
    confidence, accuracy = ([getattr(each, name) for each in full] for name in ("confidence", "accuracy"))
    sizes = [4 + 220 * each.count / total for each in full]
    axis.plot(confidence, accuracy, color=colour, linewidth=1.2, label=label, zorder=2)
    axis.scatter(confidence, accuracy, s=sizes, color=colour, alpha=0.5, linewidth=0, zorder=3)


def detection_figure(plan: Plan, found: Calibrating, path: Path) -> None:
    """Draw strangers accepted against known speakers missed, a line a run."""
    with rc_context(STUDY_STYLE):
        figure = Figure(figsize=(6.6, 4.6), layout="constrained")
        axis = figure.subplots()
        for variant, (colour, _) in looks(plan.variants).items():
            for number, curve in enumerate(found.curves[variant]):
                rates = [(point.false_acceptance, point.miss) for point in curve]
                label = variant if number == 0 else None
                axis.plot(*zip(*rates, strict=True), color=colour, linewidth=1.2, alpha=0.8, label=label)
        axis.plot([0, 1], [0, 1], color="#666666", linewidth=0.9, linestyle=(0, (1, 2)))
        axis.set_xlabel("strangers taken for a known speaker")
        axis.set_ylabel("known speakers taken for strangers")
        for share in (axis.xaxis, axis.yaxis):
            share.set_major_formatter(PercentFormatter(1.0))
        axis.grid(color="#e4e4e4", linewidth=0.8)
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path)
