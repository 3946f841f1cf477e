"""The study's figures of what was measured of the maps. All written as SVG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from speakerlens.training.evaluation.comparison.figures import looks
from speakerlens.training.evaluation.conditions import LABELS
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
from speakerlens.training.model.network import STAGES
from speakerlens.training.study.deleting import Deleting
from speakerlens.training.study.measuring import Findings
from speakerlens.training.study.pictures import STUDY_STYLE
from speakerlens.training.study.plan import Plan
from speakerlens.training.study.words import map_name
from speakerlens.training.study.worth import Worth

_DECIBELS = 50.0  # of the spectra, below their strongest part
_METHOD_LOOKS = {
    **dict(zip(STAGES, (("#9ecae1", "-"), ("#6baed6", "-"), ("#3182bd", "-"), ("#08519c", "-")), strict=True)),
    FUSED: ("#000000", "-"),
    GRAD_CAM_PLUS_PLUS: ("#D55E00", "-"),
    GRADIENT_X_INPUT: ("#CC79A7", "-"),
    MAGNITUDE: ("#CC79A7", ":"),
    ENERGY: ("#009E73", "--"),
    RANDOM: ("#999999", "--"),
    RANDOM_COARSE: ("#999999", ":"),
}


def deletion_figure(plan: Plan, kinds: Sequence[str], found: Deleting, path: Path) -> None:
    """Draw the deletion index of S4 by kind, with what the clean utterances' maps have on the same bins."""
    with rc_context(STUDY_STYLE):
        figure = Figure(figsize=(10.0, 3.8), layout="constrained")
        axis = figure.subplots()
        width = 0.8 / len(plan.variants)
        for place, (variant, (colour, marker)) in enumerate(looks(plan.variants).items()):
            x = np.arange(len(kinds)) + (place - (len(plan.variants) - 1) / 2) * width
            estimates = np.array([found.index[variant, kind, STAGES[-1]] for kind in kinds])
            clean = [found.clean[variant, kind, STAGES[-1]].mean for kind in kinds]
            ends = np.abs(estimates[:, 1:].T - estimates[:, 0])
            axis.errorbar(x, estimates[:, 0], ends, color=colour, marker=marker, linestyle="", label=variant, capsize=2)
            axis.plot(x, clean, color=colour, marker="_", markersize=11, linestyle="")
        axis.axhline(1.0, color="#666666", linewidth=0.9, linestyle=(0, (1, 2)))
        axis.set_xticks(range(len(kinds)), [LABELS[kind] for kind in kinds])
        axis.set_ylabel("deletion index of S4")
        # Intervals of few seeds may be wider than anything one could see beside them.
        seen = np.array([of[key].mean for of in (found.index, found.clean) for key in of if key[2] == STAGES[-1]])
        axis.set_ylim(np.nanmin(seen) - 0.12, max(1.05, np.nanmax(seen) + 0.12))
        figure.legend(loc="outside lower center", ncols=len(plan.variants), frameon=False)
        figure.savefig(path)


def faithfulness_figure(findings: Findings, path: Path) -> None:
    """Draw the true speaker's probability while bins are deleted and inserted, a line a method."""
    rows = [row for of_run in findings.faithfulness.values() for row in of_run if row.method in METHODS]
    with rc_context(STUDY_STYLE):
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


def sanity_figure(plan: Plan, found: Worth, path: Path) -> None:
    """Draw how like the original maps are while the network forgets, mean over variants, a line a map."""
    with rc_context(STUDY_STYLE):
        figure = Figure(figsize=(7.6, 3.8), layout="constrained")
        axis = figure.subplots()
        for name in SANITY_MAPS:
            colour, line = _METHOD_LOOKS[name]
            likeness = [[found.sanity[variant, step, name] for step in STEPS] for variant in plan.variants]
            mean = [1.0, *np.mean(likeness, axis=0)]
            axis.plot(range(len(mean)), mean, color=colour, linestyle=line, marker=".", label=map_name(name))
        axis.set_xticks(range(len(STEPS) + 1), ["as trained", *map(map_name, STEPS)])
        axis.set_xlabel("new weights from the head down to")
        axis.set_ylabel("rank correlation")
        axis.axhline(0.0, color="#666666", linewidth=0.9)
        figure.legend(loc="outside right center", frameon=False)
        figure.savefig(path)


def spectra_figure(findings: Findings, path: Path) -> None:
    """Draw the mean power spectrum of the raw maps at both taps of each stage, over all variants and seeds."""
    with rc_context(STUDY_STYLE):
        found = [of for rows in findings.spectra.values() for of in rows]
        taps = [tap for tap in TAPS if any(of.tap == tap for of in found)]
        figure = Figure(figsize=(10.0, 0.4 + 2.4 * len(taps)), layout="constrained")
        axes = figure.subplots(len(taps), len(STAGES), squeeze=False)
        image = None
        for row, tap in enumerate(taps):
            for column, stage in enumerate(STAGES):
                axis = axes[row, column]
                power = _power([of for of in found if (of.stage, of.tap) == (stage, tap)])
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
            axis.set_ylabel("cycles a row (mel)")
        for axis in axes[-1]:
            axis.set_xlabel("cycles a column (time)")
        if image is not None:
            figure.colorbar(image, ax=list(axes.flat), label="power (dB below the strongest)", aspect=30, pad=0.01)
        figure.savefig(path)


def spectrum_edges(power: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Edges of a spectrum's picture in cycles: its bins are centred on their frequencies, laid out as `MapSpectrum`."""
    rows, columns = power.shape
    along_mel, along_time = 1 / (2 * rows), 1 / (4 * (columns - 1))
    return -along_time, 0.5 + along_time, -0.5 - along_mel, 0.5 - along_mel


def _power(found: Sequence[MapSpectrum]) -> NDArray[np.float64] | None:
    """Mean power in decibels below its maximum; None where nothing could be measured."""
    powers = [np.array(each.power) for each in found]
    if not any(power.any() for power in powers):
        return None
    mean = np.mean(powers, axis=0)
    decibels: NDArray[np.float64] = 10 * np.log10(np.maximum(mean / mean.max(), 10 ** (-_DECIBELS / 10)))
    return decibels
