"""Figures of an evaluation: accuracy by SNR, and the saliency maps of all variants for one corrupted utterance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from speakerlens.training.evaluation.conditions import CLEAN_KIND, LABELS, Condition, ratio_name
from speakerlens.training.evaluation.intervals import Interval
from speakerlens.training.evaluation.maps.example import Example, ExampleAnswer

# The colour-blind safe palette of Okabe and Ito; the markers differ as well.
_LOOKS = {
    "clean": ("#D55E00", "o"),
    "da": ("#0072B2", "s"),
    "act-da": ("#009E73", "^"),
    "da-pair": ("#CC79A7", "D"),
    "da-2x": ("#E69F00", "v"),
}
_OTHER_LOOKS = (("#56B4E9", "P"), ("#000000", "X"), ("#999999", "*"), ("#882255", "h"), ("#661100", "<"))

STYLE: Any = {  # matplotlib's stubs want a literal for every key
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "figure.facecolor": "white",
}
DOTS_PER_INCH = 150
_COLUMNS = 3
_TITLE_INCHES = 7.2  # width of the robustness figure's title and legend
_CLEAN_GAP_DB = 6.0  # between the highest ratio and clean speech on the axis
_RANGE_DB = 60.0  # of log-mel shown below its loudest bin
_DOMINATED = "#E8590C"
_BLUES = LinearSegmentedColormap.from_list("on-speech", ["#ffffff", "#5b9bd5", "#08306b"])
_ORANGES = LinearSegmentedColormap.from_list("on-interference", ["#ffffff", "#f6a56b", _DOMINATED, "#7a2a00"])
_KILOHERTZ = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def looks(variants: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker for each variant, the same in every figure."""
    others = iter(_OTHER_LOOKS * len(variants))
    return {variant: _LOOKS.get(variant) or next(others) for variant in variants}


class Robustness(Protocol):
    """Accuracies to plot: of one evaluation, or of a study over seeds."""

    @property
    def about(self) -> Mapping[str, object]:
        """Return a mapping with the result of `training.provenance.tested` under "corpus"."""

    @property
    def variants(self) -> tuple[str, ...]:
        """Return the names, in the order of the lines."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of interference, in the order of the panels."""

    @property
    def snrs_db(self) -> tuple[float, ...]:
        """Return the ratios of each kind."""

    def top1(self, variant: str, kind: str, snr_db: float | None) -> tuple[float, Interval | None]:
        """Return top-1 accuracy and its interval; the kind "mean" averages all kinds of interference."""


def robustness_figure(evaluation: Robustness, path: Path) -> Figure:
    """Plot top-1 by ratio, a panel per kind of interference and one for their mean, a line per variant.

    Args:
        evaluation: what to plot.
        path: the file; its suffix chooses PNG or SVG.

    Returns:
        The figure that was written.
    """
    panels = [*evaluation.kinds, *(["mean"] if len(evaluation.kinds) > 1 else [])]
    columns = min(2 if len(panels) == 4 else _COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        width = max(1.2 + 3.5 * columns, _TITLE_INCHES)
        figure = Figure(figsize=(width, 1.5 + 2.9 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, kind in zip(axes.flat, panels, strict=False):
            _draw_panel(axis, evaluation, kind)
        for axis in list(axes.flat)[len(panels) :]:
            axis.remove()
        for axis in axes[:, 0]:
            axis.set_ylabel("top-1 accuracy")
        about: Any = evaluation.about["corpus"]
        figure.suptitle(
            f"Top-1 accuracy: {about['speakers']} speakers, {about['test_utterances']} test utterances per condition",
            x=0.01,
            ha="left",
            fontsize=13,
        )
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(path, dpi=DOTS_PER_INCH)
    return figure


def _draw_panel(axis: Axes, evaluation: Robustness, kind: str) -> None:
    snrs = np.array(sorted(evaluation.snrs_db))
    clean_at = snrs[-1] + _CLEAN_GAP_DB
    for variant, (colour, marker) in looks(evaluation.variants).items():
        clean, _ = evaluation.top1(variant, CLEAN_KIND, None)
        top1, intervals = zip(*(evaluation.top1(variant, kind, snr) for snr in snrs), strict=True)
        axis.axhline(clean, color=colour, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        axis.plot(snrs, top1, color=colour, marker=marker, markersize=5, linewidth=1.8, label=variant, zorder=3)
        axis.plot([clean_at], [clean], color=colour, marker=marker, markersize=6, zorder=3)
        if None not in intervals:
            low, high = zip(*intervals, strict=True)
            axis.fill_between(snrs, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
    axis.set_title("Mean of all kinds" if kind == "mean" else LABELS[kind], fontweight="bold")
    axis.set_xticks([*snrs, clean_at], [*(f"{snr:g}".replace("-", "−") for snr in snrs), "clean"])
    axis.tick_params(labelbottom=True)
    axis.set_xlabel(_axis_label(kind))
    axis.set_ylim(-0.02, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(axis="y", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)


def _axis_label(kind: str) -> str:
    if kind == "mean":
        return "SNR or direct-to-reverberant ratio (dB)"
    name = ratio_name(kind)
    return f"{name[0].upper()}{name[1:]} (dB)"


def saliency_figure(shown: Example, path: Path) -> Figure:
    """Plot the example and write it, as PNG or as the file's suffix says.

    The first row shows the log-mel of the speech and of the mixture, and the bins that the interference dominates.
    Below are the fused LayerCAM maps of the true speaker, one per variant, in orange on those bins and in blue
    elsewhere.

    Returns:
        The figure that was written.
    """
    variants = list(shown.answers)
    rows = 1 + -(-len(variants) // _COLUMNS)
    with rc_context(STYLE):
        figure = Figure(figsize=(13.0, 1.2 + 2.9 * rows), layout="constrained")
        axes = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
        _draw_sounds(figure, axes[0], shown)
        maps = [_draw_map(axis, shown, variant) for axis, variant in zip(axes[1:].flat, variants, strict=False)]
        used = _COLUMNS + len(variants)
        for axis in list(axes.flat)[used:]:
            axis.remove()
        for index, axis in enumerate(list(axes.flat)[:used]):
            _label(axis, shown, left=index % _COLUMNS == 0, bottom=index + _COLUMNS >= used)
        below = list(axes[1:].flat)[: len(variants)]
        figure.colorbar(maps[0][1], ax=below, label="on the interference", pad=0.01, aspect=25)
        figure.colorbar(maps[0][0], ax=below, label="saliency on the speech", pad=0.01, aspect=25)
        figure.suptitle(example_title(shown), x=0.01, ha="left", fontsize=13)
        figure.savefig(path, dpi=DOTS_PER_INCH)
    return figure


def example_title(shown: Example) -> str:
    """Return the speaker, the file and the condition of an example."""
    return f"{shown.speaker} ({shown.utterance}) under {_under(shown.condition)}"


def verdict(answer: ExampleAnswer, speaker: str) -> str:
    """Return whether a variant's answer was right, the predicted speaker and the probability."""
    outcome = f"right, {answer.predicted}" if answer.correct else f"wrong, {answer.predicted} for {speaker}"
    return f"{outcome} ({100 * answer.probability:.0f} %)"


def _under(condition: Condition) -> str:
    return f"{LABELS[condition.kind].lower()}, {condition.snr_db:g} dB {ratio_name(condition.kind)}"


def _draw_sounds(figure: Figure, axes: Sequence[Axes], shown: Example) -> None:
    top = float(shown.mixture_db.max())
    scale = {"cmap": "Greys", "vmin": top - _RANGE_DB, "vmax": top}
    _show(axes[0], shown, shown.speech_db, **scale)
    axes[0].set_title("Speech alone")
    image = _show(axes[1], shown, shown.mixture_db, **scale)
    axes[1].set_title("Mixture: the input of all variants")
    _show(axes[2], shown, shown.mixture_db, **scale)
    dominated = np.where(shown.dominated, 1.0, np.nan)
    _show(axes[2], shown, dominated, cmap=ListedColormap([_DOMINATED]), alpha=0.55)
    axes[2].set_title(f"Bins dominated by the interference ({100 * shown.dominated.mean():.0f} %)")
    figure.colorbar(image, ax=list(axes), label="log-mel power (dB)", pad=0.01, aspect=25)


def _draw_map(axis: Axes, shown: Example, variant: str) -> tuple[AxesImage, AxesImage]:
    """Plot a variant's map: in blue where the speech is louder, in orange where the interference is."""
    answer = shown.answers[variant]
    norm = PowerNorm(0.5, 0.0, 1.0)  # a square root, so that weak saliency is visible
    on_speech = _show(axis, shown, np.where(shown.dominated, np.nan, answer.map), cmap=_BLUES, norm=norm)
    on_interference = _show(axis, shown, np.where(shown.dominated, answer.map, np.nan), cmap=_ORANGES, norm=norm)
    index = "none" if np.isnan(answer.deletion_index) else f"{answer.deletion_index:.2f}"
    axis.set_title(f"{variant}: {verdict(answer, shown.speaker)}\ndeletion index {index}")
    return on_speech, on_interference


def _show(axis: Axes, shown: Example, values: NDArray[Any], **style: Any) -> AxesImage:
    """Plot values [mel, frames] on an axis in seconds and mel bins."""
    return axis.imshow(values, origin="lower", aspect="auto", interpolation="nearest", extent=_extent(shown), **style)


def _extent(shown: Example) -> tuple[float, float, float, float]:
    """Return the image's edges: frames are centred on their times, mel bins on whole numbers and a half."""
    half = (shown.times[1] - shown.times[0]) / 2 if len(shown.times) > 1 else 0.005
    return shown.times[0] - half, shown.times[-1] + half, 0.0, float(len(shown.centres_hz))


def _label(axis: Axes, shown: Example, left: bool, bottom: bool) -> None:
    """Label the axes: kilohertz at the mel bins' centre frequencies, seconds below."""
    centres = shown.centres_hz / 1000
    within = [khz for khz in _KILOHERTZ if centres[0] <= khz <= centres[-1] * 1.05]
    axis.set_yticks(np.interp(within, centres, np.arange(len(centres)) + 0.5), [f"{khz:g}" for khz in within])
    axis.tick_params(labelleft=left, labelbottom=bottom)
    if left:
        axis.set_ylabel("frequency (kHz)")
    if bottom:
        axis.set_xlabel("time (s)")
