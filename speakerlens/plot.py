"""Draw an utterance: waveform, log-mel, and each saliency map over the log-mel (needs matplotlib)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from speakerlens import palette
from speakerlens.captions import CaptionedMaps
from speakerlens.decoding import AudioFileError, open_audio
from speakerlens.results import Plane

READ_ERRORS = (AudioFileError, OSError)

_DPI = 150
_WIDTH_IN = 9.0
_HEIGHTS_IN = {"waveform": 0.9, "log-mel": 1.5, "map": 1.5}
_TICKS_KHZ = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
_WAVEFORM_COLUMNS = 1500
_SHOWN_PERCENT = (1, 99.8)  # of the log-mel's values, from white to the darkest grey


@dataclass(frozen=True)
class Waveform:
    """Samples [samples], channels averaged, with their rate in Hz."""

    samples: NDArray[np.float32]
    rate: int


def read_waveform(content: bytes) -> Waveform:
    """Decode a whole audio file; raise one of `READ_ERRORS` if it is not one that is read."""
    with open_audio(content) as file:
        blocks = [np.empty(0, np.float32), *(block.mean(axis=1) for block in file.blocks())]
        return Waveform(np.concatenate(blocks), file.rate)


def save_plot(path: Path, name: str, maps: Sequence[CaptionedMaps], waveform: Waveform) -> None:
    """Draw one utterance to a .png, .svg or .pdf file; raise OSError if it cannot be written."""
    draw(name, maps, waveform).savefig(path)


def draw(name: str, maps: Sequence[CaptionedMaps], waveform: Waveform) -> Figure:
    """Draw one utterance's panels, top to bottom: waveform, log-mel, then every map of every model.

    All panels share the time axis in seconds. Those over frequency share an axis that is labelled in kHz and spaced
    in mel, so that the rows of the front end have equal heights. A map lies in one hue over the grey log-mel, the more
    opaque, the nearer it comes to its maximum.

    Raises:
        ValueError: there is no map.
    """
    panels = [(model, stage, plane) for model in maps for stage, plane in model.explanation.maps.items()]
    if not panels:
        raise ValueError("nothing to draw: the answer has no saliency map; request one with explain")
    log_mel = next((model.explanation.log_mel for model in maps if model.explanation.log_mel), None)
    rows = ["waveform", *(["log-mel"] if log_mel else []), *["map"] * len(panels)]
    heights = [_HEIGHTS_IN[row] for row in rows]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights) + 0.32 * len(rows) + 0.7), dpi=_DPI, layout="constrained")
    # The colour bars have their own column: taken from the panels, they would break the shared time axis.
    grid = figure.subplots(len(rows), 2, width_ratios=[1, 0.018], height_ratios=heights, squeeze=False)
    axes, bars = list(grid[:, 0]), list(grid[:, 1])
    _share(axes, len(waveform.samples) / waveform.rate)
    figure.suptitle(name, x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    _waveform(axes[0], waveform)
    bars[0].axis("off")
    low, high = np.percentile(log_mel.values, _SHOWN_PERCENT) if log_mel else (0.0, 1.0)
    if log_mel:
        _grey(axes[1], log_mel, low, high)
        _title(axes[1], "log-mel", "the input of the network, mean over time subtracted")
        _bar(figure, ListedColormap(_ramp(palette.grey)), (low, high), bars[1], "log power")
    for axis, bar, (model, stage, plane) in zip(axes[-len(panels) :], bars[-len(panels) :], panels, strict=True):
        if log_mel:
            _grey(axis, log_mel, low, high)
        _image(axis, plane, palette.saliency(plane.values))
        axis.spines["left"].set(color=model.colour, linewidth=4)
        _title(axis, f"{model.name}: {model.verdict}", f"{stage} saliency: {model.question}")
        _bar(figure, ListedColormap(_ramp(palette.saliency)), (0.0, 1.0), bar, "of maximum")
    _share_frequency(axes[1:])
    axes[-1].set_xlabel("time (s)")
    return figure


def _share(axes: list[Axes], seconds: float) -> None:
    for axis in axes:
        axis.tick_params(labelsize=8, labelbottom=axis is axes[-1])
        if axis is not axes[0]:
            axis.sharex(axes[0])
    axes[0].set_xlim(0.0, seconds)


def _share_frequency(axes: list[Axes]) -> None:
    limits = [axis.get_ylim() for axis in axes]
    low, high = min(limit[0] for limit in limits), max(limit[1] for limit in limits)
    ticks = [khz for khz in _TICKS_KHZ if low <= _mel(khz * 1000) <= high]
    for axis in axes:
        axis.set_ylim(low, high)
        axis.set_yticks([float(_mel(khz * 1000)) for khz in ticks], [f"{khz:g}" for khz in ticks])
        axis.set_ylabel("kHz", fontsize=9)


def _waveform(axis: Axes, waveform: Waveform) -> None:
    """Draw the minimum and maximum of each column, so that no peak is lost between two pixels."""
    samples, columns = waveform.samples, min(_WAVEFORM_COLUMNS, len(waveform.samples))
    starts = np.arange(columns) * len(samples) // columns
    low, high = np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
    axis.fill_between(starts / waveform.rate, low, high, color="0.35", linewidth=0.6)
    bound = max(1e-3, float(np.abs(samples).max())) * 1.05
    axis.set_ylim(-bound, bound)
    axis.set_ylabel("amplitude", fontsize=9)
    _title(axis, "waveform", f"{waveform.rate / 1000:g} kHz")


def _grey(axis: Axes, log_mel: Plane, low: float, high: float) -> None:
    shares = (log_mel.values - low) / ((high - low) or 1.0)
    _image(axis, log_mel, palette.grey(shares))


def _image(axis: Axes, plane: Plane, pixels: NDArray[np.uint8]) -> None:
    """Draw pixels, RGBA [rows, columns, 4], at the places of a plane."""
    left, right = _edges(plane.times_s)
    bottom, top = _edges(_mel(plane.frequencies_hz))
    axis.imshow(pixels, origin="lower", aspect="auto", extent=(left, right, bottom, top))


def _ramp(pixels: Callable[[NDArray[np.float64]], NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Return the colours from the lowest to the highest value, RGBA [256, 4] in [0, 1]."""
    return np.asarray(pixels(np.linspace(0.0, 1.0, 256)[None])[0] / 255)


def _edges(centres: NDArray[Any]) -> tuple[float, float]:
    """Return the outer edges of cells around equally spaced centres."""
    first, last = float(centres[0]), float(centres[-1])
    half = (last - first) / (len(centres) - 1) / 2 if len(centres) > 1 else 0.5
    return first - half, last + half


def _mel(hertz: NDArray[Any] | float) -> NDArray[Any]:
    """Return Kaldi's mel scale, 1127 ln(1 + f / 700), on which the rows of the front end are equally spaced."""
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz) / 700.0))


def _title(axis: Axes, left: str, right: str) -> None:
    # parse_math is off because the name of a speaker or a file may contain a dollar sign.
    axis.set_title(left, loc="left", fontsize=10, pad=4, parse_math=False)
    axis.set_title(right, loc="right", fontsize=8, pad=4, color="0.4", parse_math=False)


def _bar(figure: Figure, colours: ListedColormap, limits: tuple[float, float], axis: Axes, label: str) -> None:
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), colours), cax=axis)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
