"""Figures of an evaluation: accuracy by SNR, and the saliency maps of all variants for one corrupted utterance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from speakerlens import palette
from speakerlens.palette import looks
from speakerlens.training.evaluation.comparison.results import MEAN
from speakerlens.training.evaluation.conditions import CLEAN_KIND, LABELS, Condition, ratio_name
from speakerlens.training.evaluation.intervals import Interval
from speakerlens.training.evaluation.maps.example import Example, ExampleAnswer, Why

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
_GREYS = ListedColormap(palette.grey(np.linspace(0, 1, 256)[None])[0] / 255)
_SALIENCY_BAR = ListedColormap(palette.saliency(np.arange(256.0)[None])[0] / 255)
KILOHERTZ = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


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
    panels = accuracy_panels(evaluation)
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


def accuracy_panels(evaluation: Robustness) -> list[str]:
    """Return the kinds of interference that have a panel; the first is their mean, where there are several."""
    return [*([MEAN] if len(evaluation.kinds) > 1 else []), *evaluation.kinds]


def panel_title(kind: str) -> str:
    """Return the title of a kind's panel."""
    return "Mean of all kinds" if kind == MEAN else LABELS[kind]


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
    axis.set_title(panel_title(kind), fontweight="bold")
    axis.set_xticks([*snrs, clean_at], [*(f"{snr:g}".replace("-", "−") for snr in snrs), "clean"])
    axis.tick_params(labelbottom=True)
    axis.set_xlabel(ratio_label(kind))
    axis.set_ylim(-0.02, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(axis="y", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)


def ratio_label(kind: str) -> str:
    """Return the label of the axis of ratios."""
    if kind == MEAN:
        return "SNR or direct-to-reverberant ratio (dB)"
    name = ratio_name(kind)
    return f"{name[0].upper()}{name[1:]} (dB)"


def saliency_figure(shown: Example, path: Path) -> Figure:
    """Plot the example and write it, as PNG or as the file's suffix says.

    The first row shows the log-mel of the speech and of the mixture, and the bins that the interference dominates.
    Below are the fused LayerCAM maps, in one hue over the mixture: for each variant that of the speaker whom it names,
    and where this is the wrong one, in the same column of a further row, that of the true speaker.

    Returns:
        The figure that was written.
    """
    rows = _map_rows(shown)
    with rc_context(STYLE):
        figure = Figure(figsize=(13.0, 1.2 + 3.0 * (1 + len(rows))), layout="constrained")
        axes = figure.subplots(1 + len(rows), _COLUMNS, sharex=True, sharey=True, squeeze=False)
        _draw_sounds(figure, axes[0], shown)
        filled = np.ones(axes.shape, dtype=bool)
        for row, whys in enumerate(rows, start=1):
            for column in range(_COLUMNS):
                variant, why = whys[column]
                filled[row, column] = why is not None
                if why is None:
                    axes[row, column].set_visible(False)
                else:
                    _draw_map(axes[row, column], shown, variant, why)
        for row, column in np.argwhere(filled):
            bottom = not filled[row + 1 :, column].any()
            _label(axes[row, column], shown, left=not filled[row, :column].any(), bottom=bottom)
        bar = ScalarMappable(Normalize(0, 1), _SALIENCY_BAR)
        figure.colorbar(bar, ax=list(axes[1:].flat), label="saliency, share of the map's maximum", pad=0.01, aspect=25)
        figure.suptitle(example_title(shown), x=0.01, ha="left", fontsize=13)
        figure.savefig(path, dpi=DOTS_PER_INCH)
    return figure


def _map_rows(shown: Example) -> list[list[tuple[str, Why | None]]]:
    """Return the maps in rows of `_COLUMNS`; None leaves a place empty."""
    named = [(variant, answer.named) for variant, answer in shown.answers.items()]
    true = [(variant, None if answer.correct else answer.true) for variant, answer in shown.answers.items()]
    rows: list[list[tuple[str, Why | None]]] = []
    for whys in (named, true):
        filled = [*whys, *[("", None)] * (-len(whys) % _COLUMNS)]
        rows += [list(filled[start : start + _COLUMNS]) for start in range(0, len(filled), _COLUMNS)]
    return [row for row in rows if any(why for _, why in row)]


def example_title(shown: Example) -> str:
    """Return the speaker, the file and the condition of an example."""
    return f"{shown.speaker} ({shown.utterance}) under {_under(shown.condition)}"


def verdict(answer: ExampleAnswer) -> str:
    """Return whether a variant's answer was right, the named speaker, the probability, and whether it is known."""
    named, true = answer.named.speaker, answer.true.speaker
    outcome = f"right, {named}" if answer.correct else f"wrong, {named} for {true}"
    return f"{outcome} ({100 * answer.named.probability:.0f} %{'' if answer.known else ', unknown'})"


def question(why: Why) -> str:
    """Return which score a map explains, with its deletion index with and without the interference."""
    indices = ("none" if np.isnan(index) else f"{index:.2f}" for index in (why.deletion_index, why.clean_index))
    return "why {}? deletion index {} (speech alone {})".format(why.speaker, *indices)


def _under(condition: Condition) -> str:
    return f"{LABELS[condition.kind].lower()}, {condition.snr_db:g} dB {ratio_name(condition.kind)}"


def loudness(shown: Example, decibels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a spectrogram in [0, 1]: the loudest bin of the mixture is 1, and 0 lies 60 dB below it."""
    shares: NDArray[np.float32] = np.clip(1 + (decibels - shown.mixture_db.max()) / _RANGE_DB, 0, 1)
    return shares


def _draw_sounds(figure: Figure, axes: Sequence[Axes], shown: Example) -> None:
    top = float(shown.mixture_db.max())
    scale = {"cmap": _GREYS, "vmin": top - _RANGE_DB, "vmax": top}
    _show(axes[0], shown, shown.speech_db, **scale)
    axes[0].set_title("Speech alone")
    image = _show(axes[1], shown, shown.mixture_db, **scale)
    axes[1].set_title("Mixture: the input of all variants")
    _show(axes[2], shown, shown.mixture_db, **scale)
    dominated = np.where(shown.dominated, 1.0, np.nan)
    _show(axes[2], shown, dominated, cmap=ListedColormap([palette.INTERFERENCE]), alpha=0.55)
    axes[2].set_title(f"Bins dominated by the interference ({100 * shown.dominated.mean():.0f} %)")
    figure.colorbar(image, ax=list(axes), label="log-mel power (dB)", pad=0.01, aspect=25)


def _draw_map(axis: Axes, shown: Example, variant: str, why: Why) -> None:
    """Plot a map in one hue over the grey spectrogram of the mixture."""
    _show(axis, shown, palette.grey(loudness(shown, shown.mixture_db)))
    _show(axis, shown, palette.saliency(why.map))
    axis.set_title(f"{variant}: {verdict(shown.answers[variant])}\n{question(why)}", fontsize=9)
    axis.spines["left"].set(color=palette.looks(shown.answers)[variant].colour, linewidth=4)


def _show(axis: Axes, shown: Example, values: NDArray[Any], **style: Any) -> AxesImage:
    """Plot values [mel, frames] or pixels [mel, frames, 4] on an axis in seconds and mel bins."""
    return axis.imshow(values, origin="lower", aspect="auto", interpolation="nearest", extent=_extent(shown), **style)


def _extent(shown: Example) -> tuple[float, float, float, float]:
    """Return the image's edges: frames are centred on their times, mel bins on whole numbers and a half."""
    half = (shown.times[1] - shown.times[0]) / 2 if len(shown.times) > 1 else 0.005
    return shown.times[0] - half, shown.times[-1] + half, 0.0, float(len(shown.centres_hz))


def _label(axis: Axes, shown: Example, left: bool, bottom: bool) -> None:
    """Label the axes: kilohertz at the mel bins' centre frequencies, seconds below."""
    centres = shown.centres_hz / 1000
    within = [khz for khz in KILOHERTZ if centres[0] <= khz <= centres[-1] * 1.05]
    axis.set_yticks(np.interp(within, centres, np.arange(len(centres)) + 0.5), [f"{khz:g}" for khz in within])
    axis.tick_params(labelleft=left, labelbottom=bottom)
    if left:
        axis.set_ylabel("frequency (kHz)")
    if bottom:
        axis.set_xlabel("time (s)")
