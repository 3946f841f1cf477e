"""The study's figures: accuracy over ratios, dev curves, calibration, and quality of the maps. All written as SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from speakerlens.palette import looks
from speakerlens.training.evaluation.comparison.figures import STYLE, Robustness, robustness_figure
from speakerlens.training.evaluation.conditions import LABELS, SNRS_DB
from speakerlens.training.evaluation.formatting import map_name
from speakerlens.training.evaluation.intervals import Interval
from speakerlens.training.evaluation.maps.attributions import (
    ENERGY,
    FUSED,
    GRAD_CAM_PLUS_PLUS,
    GRADIENT_X_INPUT,
    METHODS,
    RANDOM,
    RANDOM_COARSE,
)
from speakerlens.training.evaluation.maps.faithfulness import Faithfulness
from speakerlens.training.evaluation.maps.randomisation import MAGNITUDE, STEPS
from speakerlens.training.evaluation.maps.randomisation import MAPS as SANITY_MAPS
from speakerlens.training.evaluation.maps.spectrum import TAPS, MapSpectrum
from speakerlens.training.evaluation.metrics import ReliabilityBin
from speakerlens.training.model.network import STAGES
from speakerlens.training.study.accuracy import Accuracy
from speakerlens.training.study.calibration import CalibrationResults
from speakerlens.training.study.logs import Convergence
from speakerlens.training.study.map_quality import DeletionResults, MapQuality
from speakerlens.training.study.measurements import Measurements
from speakerlens.training.study.plan import Plan

_COLUMNS = 3
_STYLE = {**STYLE, "svg.hashsalt": "study"}  # the same file for the same numbers
_DECIBELS = 50.0  # shown of the spectra, below their maximum
_METHOD_LOOKS = {  # none is the colour of a variant
    **dict(zip(STAGES, (("#D7BDE2", "-"), ("#AF7AC5", "-"), ("#7D3C98", "-"), ("#4A235A", "-")), strict=True)),
    FUSED: ("#000000", "-"),
    GRAD_CAM_PLUS_PLUS: ("#A6761D", "-"),
    GRADIENT_X_INPUT: ("#66A61E", "-"),
    MAGNITUDE: ("#66A61E", ":"),
    ENERGY: ("#B3264E", "--"),
    RANDOM: ("#999999", "--"),
    RANDOM_COARSE: ("#999999", ":"),
}


@dataclass(frozen=True)
class _Curves:
    """Accuracy over seeds, in the form that `robustness_figure` takes."""

    about: Mapping[str, object]
    variants: tuple[str, ...]
    kinds: tuple[str, ...]
    accuracy: Accuracy
    snrs_db: tuple[float, ...] = SNRS_DB

    def top1(self, variant: str, kind: str, snr_db: float | None) -> tuple[float, Interval | None]:
        """Return the mean over seeds, and its interval clipped to [0, 1]."""
        mean, low, high = self.accuracy.by_condition[variant, kind, snr_db]
        return mean, None if np.isnan(low) else (max(0.0, low), min(1.0, high))


def accuracy_curves(plan: Plan, kinds: tuple[str, ...], accuracy: Accuracy, about: Mapping[str, object]) -> Robustness:
    """Return top-1 by ratio with intervals over seeds, in the form that charts take."""
    return _Curves(about, plan.variants, kinds, accuracy)


def accuracy_figure(curves: Robustness, path: Path) -> None:
    """Plot top-1 by ratio with intervals over seeds."""
    with rc_context(_STYLE):
        robustness_figure(curves, path)


def dev_figure(plan: Plan, results: Convergence, path: Path) -> None:
    """Plot accuracy on the dev split over updates: a thin line per run, a thick one for the mean of a variant."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        axis = figure.subplots()
        for variant, (colour, _) in looks(plan.variants).items():
            curves = [curve for run, curve in results.curves.items() if run.variant == variant and curve.updates]
            for curve in curves:
                axis.plot(curve.updates, curve.accuracy, color=colour, linewidth=0.7, alpha=0.45)
            if curves:
                mean = np.mean([curve.accuracy for curve in curves], axis=0)
                axis.plot(curves[0].updates, mean, color=colour, linewidth=2.2, label=variant)
        axis.set_xlabel("updates")
        axis.set_ylabel(f"top-1 on {results.on} dev crops")
        axis.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axis.set_ylim(-2, 102)
        axis.grid(axis="y", color="#dddddd", linewidth=0.8)
        axis.legend(loc="lower right", frameon=False, ncols=2)
        figure.savefig(path)


def reliability_figure(plan: Plan, results: CalibrationResults, path: Path) -> None:
    """Plot accuracy over confidence, a panel per variant, before and after temperature scaling."""
    columns = min(_COLUMNS, len(plan.variants))
    rows = -(-len(plan.variants) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(0.8 + 3.1 * columns, 0.6 + 3.1 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, (variant, (colour, _)) in zip(axes.flat, looks(plan.variants).items(), strict=False):
            _draw_reliability(axis, results.before[variant], "#999999", "as trained")
            _draw_reliability(axis, results.after[variant], colour, "with temperature")
            axis.plot([0, 1], [0, 1], color="#666666", linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
            axis.set_title(variant, fontweight="bold")
            axis.set_xlabel("top probability")
            axis.tick_params(labelbottom=True)
            axis.legend(loc="upper left", frameon=False, fontsize=8)
            for share in (axis.xaxis, axis.yaxis):
                share.set_major_formatter(PercentFormatter(1.0))
        for axis in list(axes.flat)[len(plan.variants) :]:
            axis.remove()
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy")
        figure.savefig(path)


def _draw_reliability(axis: Axes, bins: tuple[ReliabilityBin, ...], colour: str, label: str) -> None:
    full = [each for each in bins if each.count]
    total = sum(each.count for each in full)
    confidence, accuracy = ([getattr(each, name) for each in full] for name in ("confidence", "accuracy"))
    sizes = [4 + 220 * each.count / total for each in full]
    axis.plot(confidence, accuracy, color=colour, linewidth=1.2, label=label, zorder=2)
    axis.scatter(confidence, accuracy, s=sizes, color=colour, alpha=0.5, linewidth=0, zorder=3)


def detection_figure(plan: Plan, results: CalibrationResults, path: Path) -> None:
    """Plot miss over false acceptance, a line per run."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.6, 4.6), layout="constrained")
        axis = figure.subplots()
        for variant, (colour, _) in looks(plan.variants).items():
            for number, curve in enumerate(results.curves[variant]):
                rates = [(point.false_acceptance, point.miss) for point in curve]
                label = variant if number == 0 else None
                axis.plot(*zip(*rates, strict=True), color=colour, linewidth=1.2, alpha=0.8, label=label)
        axis.plot([0, 1], [0, 1], color="#666666", linewidth=0.9, linestyle=(0, (1, 2)))
        axis.set_xlabel("false acceptance of out-of-set speakers")
        axis.set_ylabel("miss of known speakers")
        for share in (axis.xaxis, axis.yaxis):
            share.set_major_formatter(PercentFormatter(1.0))
        axis.grid(color="#e4e4e4", linewidth=0.8)
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path)


def deletion_figure(plan: Plan, kinds: Sequence[str], results: DeletionResults, path: Path) -> None:
    """Plot the deletion index of S4 by kind, with that of the clean utterances' maps on the same bins."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(10.0, 3.8), layout="constrained")
        axis = figure.subplots()
        width = 0.8 / len(plan.variants)
        for place, (variant, (colour, marker)) in enumerate(looks(plan.variants).items()):
            x = np.arange(len(kinds)) + (place - (len(plan.variants) - 1) / 2) * width
            estimates = np.array([results.index[variant, kind, STAGES[-1]] for kind in kinds])
            clean = [results.clean[variant, kind, STAGES[-1]].mean for kind in kinds]
            ends = np.abs(estimates[:, 1:].T - estimates[:, 0])
            axis.errorbar(x, estimates[:, 0], ends, color=colour, marker=marker, linestyle="", label=variant, capsize=2)
            axis.plot(x, clean, color=colour, marker="_", markersize=11, linestyle="")
        axis.axhline(1.0, color="#666666", linewidth=0.9, linestyle=(0, (1, 2)))
        axis.set_xticks(range(len(kinds)), [LABELS[kind] for kind in kinds])
        axis.set_ylabel("deletion index of S4")
        # Limits from the means: with few seeds the intervals may be very wide.
        seen = np.array([of[key].mean for of in (results.index, results.clean) for key in of if key[2] == STAGES[-1]])
        axis.set_ylim(np.nanmin(seen) - 0.12, max(1.05, np.nanmax(seen) + 0.12))
        figure.legend(loc="outside lower center", ncols=len(plan.variants), frameon=False)
        figure.savefig(path)


def faithfulness_figure(measured: Measurements, path: Path) -> None:
    """Plot the true speaker's probability while bins are deleted and inserted, a line per method."""
    rows = [row for of_run in measured.faithfulness.values() for row in of_run if row.method in METHODS]
    with rc_context(_STYLE):
        figure = Figure(figsize=(10.0, 4.4), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for method in METHODS:
            of_method = [row for row in rows if row.method == method]
            _draw_curve(axes[0], method, of_method, [row.deletion.probability for row in of_method])
            _draw_curve(axes[1], method, of_method, [row.insertion.probability for row in of_method])
        for axis, what in zip(axes, ("deleted (lower is better)", "inserted (higher is better)"), strict=True):
            axis.set_title(f"Most salient bins {what}", fontweight="bold")
            axis.set_xlabel("share of the bins")
            axis.xaxis.set_major_formatter(PercentFormatter(1.0))
            axis.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        axes[0].set_ylabel("probability of the true speaker")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(path)


def _draw_curve(axis: Axes, method: str, rows: Sequence[Faithfulness], curves: Sequence[Sequence[float]]) -> None:
    colour, line = _METHOD_LOOKS[method]
    axis.plot(rows[0].shares, np.mean(curves, axis=0), color=colour, linestyle=line, label=map_name(method))


def sanity_figure(plan: Plan, results: MapQuality, path: Path) -> None:
    """Plot the similarity to the original maps over the randomised parts, mean over variants, a line per map."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 3.8), layout="constrained")
        axis = figure.subplots()
        for name in SANITY_MAPS:
            colour, line = _METHOD_LOOKS[name]
            similarity = [[results.sanity[variant, step, name] for step in STEPS] for variant in plan.variants]
            mean = [1.0, *np.mean(similarity, axis=0)]
            axis.plot(range(len(mean)), mean, color=colour, linestyle=line, marker=".", label=map_name(name))
        axis.set_xticks(range(len(STEPS) + 1), ["as trained", *map(map_name, STEPS)])
        axis.set_xlabel("randomised from the head down to")
        axis.set_ylabel("rank correlation")
        axis.axhline(0.0, color="#666666", linewidth=0.9)
        figure.legend(loc="outside right center", frameon=False)
        figure.savefig(path)


def spectra_figure(measured: Measurements, path: Path) -> None:
    """Plot the mean power spectrum of the raw maps at both taps of each stage, over all variants and seeds."""
    with rc_context(_STYLE):
        results = [of for rows in measured.spectra.values() for of in rows]
        taps = [tap for tap in TAPS if any(of.tap == tap for of in results)]
        figure = Figure(figsize=(10.0, 0.4 + 2.4 * len(taps)), layout="constrained")
        axes = figure.subplots(len(taps), len(STAGES), squeeze=False)
        image = None
        for row, tap in enumerate(taps):
            for column, stage in enumerate(STAGES):
                axis = axes[row, column]
                power = _power([of for of in results if (of.stage, of.tap) == (stage, tap)])
                if power is None:
                    axis.axis("off")
                    continue
                image = axis.imshow(
                    power,
                    origin="lower",
                    aspect="auto",
                    interpolation="nearest",
                    extent=spectrum_edges(power),
                    vmin=-_DECIBELS,
                    vmax=0,
                    cmap="magma",
                )
                axis.set_title(f"{stage.upper()}, {tap.replace('-', ' ')}", fontsize=9)
        for axis in axes[:, 0]:
            axis.set_ylabel("cycles per row (mel)")
        for axis in axes[-1]:
            axis.set_xlabel("cycles per column (time)")
        if image is not None:
            figure.colorbar(image, ax=list(axes.flat), label="power (dB below the strongest)", aspect=30, pad=0.01)
        figure.savefig(path)


def spectrum_edges(power: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return the image's edges in cycles for a spectrum as in `MapSpectrum`: bins are centred on their frequencies."""
    rows, columns = power.shape
    along_mel, along_time = 1 / (2 * rows), 1 / (4 * (columns - 1))
    return -along_time, 0.5 + along_time, -0.5 - along_mel, 0.5 - along_mel


def _power(results: Sequence[MapSpectrum]) -> NDArray[np.float64] | None:
    """Return the mean power in decibels below its maximum, laid out as in `MapSpectrum`; None without any power."""
    powers = [np.array(each.power) for each in results]
    if not any(power.any() for power in powers):
        return None
    mean = np.mean(powers, axis=0)
    decibels: NDArray[np.float64] = 10 * np.log10(np.maximum(mean / mean.max(), 10 ** (-_DECIBELS / 10)))
    return decibels
