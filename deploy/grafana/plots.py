"""The four kinds of panels on a matplotlib figure: lines, numbers, heatmaps, tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.dates import AutoDateLocator, DateFormatter
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from deploy.grafana.model import Colour, Kind, Panel, Unit
from deploy.grafana.rendering import VARIANT_COLOURS
from deploy.grafana.units import show
from deploy.prometheus_api import Series

INK, MUTED, GRID, FRAME = "#24292e", "#6b7280", "#e5e7eb", "#d1d5db"
SHADES = {Colour.GOOD: "#37872d", Colour.WATCH: "#e07b00", Colour.BAD: "#c4162a"}
FILLS = {Colour.GOOD: "#d6ecd2", Colour.WATCH: "#ffe5c2", Colour.BAD: "#f9cdd1"}
NAMED = {"blue": "#3274d9", "orange": "#e07b00", "green": "#37872d", "purple": "#8f3bb8"}
PALETTE = "#37872d #e0b400 #3274d9 #e07b00 #c4162a #8f3bb8 #138a8a #b05c8c #7a7f87 #1f60c4 #96d98d #6d4c2f".split()
CHARACTER_INCHES, LINE_INCHES = 0.062, 0.15
MAX_LEGEND_LINES = 3
DAY = 86_400.0
SECONDS_SHOWN_BELOW = 600


@dataclass(frozen=True)
class Span:
    """What is drawn: seconds since 1970, a sample every `step` seconds, and names for moments in between."""

    start: float
    end: float
    step: float
    marks: Mapping[float, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A series with its name."""

    name: str
    series: Series
    reference: bool = False


@dataclass(frozen=True)
class Box:
    """A rectangle on the picture, in inches from its lower left corner."""

    left: float
    bottom: float
    width: float
    height: float

    def axes(self, figure: Figure, left: float = 0, bottom: float = 0, right: float = 0, top: float = 0) -> Axes:
        """Axes within the rectangle less these margins."""
        width, height = figure.get_size_inches()
        return figure.add_axes(
            (
                (self.left + left) / width,
                (self.bottom + bottom) / height,
                (self.width - left - right) / width,
                (self.height - bottom - top) / height,
            )
        )

    def write(
        self, figure: Figure, text: str, *, size: float, colour: str, y: float, weight: str = "normal", x: float = 0.0
    ) -> None:
        """Text that begins at a part of the width and is centred on a part of the height."""
        width, height = figure.get_size_inches()
        place = (self.left + x * self.width) / width, (self.bottom + y * self.height) / height
        figure.text(*place, text, size=size, color=colour, weight=weight, va="center", ha="left", parse_math=False)

    def framed(self, figure: Figure, title: str) -> "Box":
        """Draws the panel's white ground and title, and returns what is left below the title."""
        axes = self.axes(figure)
        axes.set_axis_off()
        axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor="white", edgecolor=FRAME))
        Box(self.left + 0.1, self.bottom + self.height - 0.28, self.width, 0.28).write(
            figure, title, size=9, weight="bold", colour=INK, y=0.45
        )
        return Box(self.left, self.bottom, self.width, self.height - 0.28)


def lines(figure: Figure, box: Box, panel: Panel, found: Sequence[Line], span: Span) -> None:
    """Lines, or areas on top of one another, over time."""
    labels = [line.name for line in found]
    rows = _legend_rows(labels, box.width - 0.3)
    axes = box.axes(figure, left=0.72, right=0.15, top=0.08, bottom=0.3 + LINE_INCHES * len(rows))
    _time(axes, span)
    colours = [_colour(line.name, index) for index, line in enumerate(found)]
    floor: NDArray[np.float64] | None = None
    moments = np.arange(span.start, span.end + span.step / 2, span.step)
    for line, colour in zip(found, colours, strict=True):
        times, values = _moments(line.series.times), line.series.values
        if line.reference:
            axes.plot(times, values, color=colour, linewidth=1.2, linestyle=(0, (5, 3)))
        elif panel.stacked:
            height = _spread(line.series, moments, span.step)
            floor = np.zeros_like(height) if floor is None else floor
            axes.fill_between(_moments(moments), floor, floor + height, color=colour, alpha=0.35, linewidth=0)
            # Where a part is nothing it must not draw over the one below it, if there is one.
            there = (height > 0) | (floor + height == 0)
            axes.plot(_moments(moments), np.where(there, floor + height, np.nan), color=colour, linewidth=1)
            floor = floor + height
        else:
            axes.plot(*_gaps(line.series, span.step), color=colour, linewidth=1.3)
    for threshold in panel.thresholds:
        axes.axhline(threshold.value, color=SHADES[threshold.colour], linewidth=0.9, linestyle=(0, (2, 2)))
    _limits(axes, panel)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value, panel.unit)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if not any(np.isfinite(line.series.values).any() for line in found):
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color=MUTED)
    _legend(figure, box, rows, dict(zip(labels, colours, strict=True)))


def number(figure: Figure, box: Box, panel: Panel, found: Sequence[Line], span: Span) -> None:
    """The last value of each series in the colour of its threshold, beside one another, over small curves."""
    for place, line in enumerate(found):
        width = box.width / len(found)
        tile = Box(box.left + place * width, box.bottom, width, box.height)
        value = _last(line.series)
        level = _level(panel, value)
        if len(line.series.values) > 1:
            axes = tile.axes(figure, left=0.04, right=0.04, bottom=0.04, top=0.55 * box.height)
            axes.set_axis_off()
            axes.set_xlim(span.start / DAY, span.end / DAY)
            axes.fill_between(*_gaps(line.series, span.step), color=FILLS[level])
        if len(found) > 1:
            tile.write(figure, line.name, size=8.5, colour=MUTED, y=0.88, x=0.06)
        text = show(value, panel.unit)
        size = min(22.0, 85 * tile.width / max(4, len(text)))
        tile.write(figure, text, size=size, weight="bold", colour=SHADES[level], y=0.58, x=0.06)
    if not found:
        box.write(figure, "no data", size=10, colour=MUTED, y=0.5, x=0.1)


def heatmap(figure: Figure, box: Box, panel: Panel, found: Sequence[Line], span: Span) -> None:
    """How many fell into each bucket, over time; buckets are as high as one another."""
    axes = box.axes(figure, left=0.72, right=0.15, top=0.08, bottom=0.3)
    _time(axes, span)
    moments = np.arange(span.start, span.end + span.step / 2, span.step)
    ordered = sorted(found, key=lambda line: float(line.series.labels["le"]))
    cumulative = np.array([_spread(line.series, moments, span.step) for line in ordered])
    if cumulative.size == 0 or not cumulative.any():
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        return
    counts = np.maximum(np.diff(cumulative, axis=0, prepend=0), 0)
    edges = _moments(np.append(moments, moments[-1] + span.step) - span.step / 2)
    shaded = np.where(counts > 1e-9, counts, np.nan)
    axes.pcolormesh(edges, np.arange(len(ordered) + 1), shaded, cmap="turbo", norm=PowerNorm(0.5, vmin=0))
    bounds = [float(line.series.labels["le"]) for line in ordered]
    every = math.ceil(len(bounds) / (box.height / 0.22))
    axes.set_yticks(
        range(1, len(bounds) + 1, every), ["" if math.isinf(b) else show(b, panel.unit) for b in bounds[::every]]
    )


def table(figure: Figure, box: Box, panel: Panel, found: Sequence[Line], _: Span) -> None:
    """The last values: a matrix of two labels, or the labels themselves."""
    if panel.matrix:
        rows = sorted({line.series.labels.get(panel.matrix.rows, "") for line in found})
        columns = sorted({line.series.labels.get(panel.matrix.columns, "") for line in found})
        values = {
            (line.series.labels.get(panel.matrix.rows, ""), line.series.labels.get(panel.matrix.columns, "")): _last(
                line.series
            )
            for line in found
        }
        cells = [[row, *(show(values.get((row, column), math.nan), panel.unit) for column in columns)] for row in rows]
        fills = [["white", *(_fill(panel, values.get((row, column), math.nan)) for column in columns)] for row in rows]
        head = [panel.matrix.rows, *columns]
    else:
        head = list(panel.columns)
        cells = [[line.series.labels.get(column, "") for column in head] for line in found]
        fills = [["white"] * len(head) for _ in cells]
    if not found:
        box.write(figure, "no data", size=10, colour=MUTED, y=0.5, x=0.45)
        return
    widths = [max(len(text) for text in column) + 2 for column in zip(head, *cells, strict=True)]
    axes = box.axes(figure, left=0.1, right=0.1, top=0.05, bottom=0.08)
    axes.set_axis_off()
    height = min(0.24, (box.height - 0.13) / (len(cells) + 1)) / (box.height - 0.13)
    lefts = np.concatenate([[0.0], np.cumsum(widths) / sum(widths)])
    for index, (texts, shades) in enumerate(zip([head, *cells], [["#f4f5f6"] * len(head), *fills], strict=True)):
        bottom = 1 - (index + 1) * height
        for left, right, text, shade in zip(lefts[:-1], lefts[1:], texts, shades, strict=True):
            axes.add_patch(Rectangle((left, bottom), right - left, height, facecolor=shade, edgecolor=GRID, lw=0.6))
            room = int((right - left) * (box.width - 0.2) / CHARACTER_INCHES)
            axes.text(left + 0.006, bottom + height / 2, _cut(text, room), size=7.5, va="center", color=INK)
    axes.set(xlim=(0, 1), ylim=(0, 1))


PLOTS: Mapping[Kind, Callable[[Figure, Box, Panel, Sequence[Line], Span], None]] = {
    Kind.LINES: lines,
    Kind.NUMBER: number,
    Kind.HEATMAP: heatmap,
    Kind.TABLE: table,
}


def _time(axes: Axes, span: Span) -> None:
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=3, maxticks=6))  # type: ignore[no-untyped-call]
    seconds = span.end - span.start < SECONDS_SHOWN_BELOW
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M:%S" if seconds else "%H:%M"))  # type: ignore[no-untyped-call]
    axes.set_xlim(span.start / DAY, span.end / DAY)
    axes.tick_params(labelsize=7, colors=MUTED, length=2)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_color(GRID)
    for moment, text in span.marks.items():
        where = moment / DAY
        axes.axvline(where, color=MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
        axes.text(
            where, 0.98, f" {text}", transform=axes.get_xaxis_transform(), size=6.5, va="top", color=MUTED, clip_on=True
        )


def _moments(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matplotlib's dates: days since 1970."""
    return times / DAY


def _gaps(series: Series, step: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points to join, with a hole wherever Prometheus had nothing."""
    holes = np.flatnonzero(np.diff(series.times) > 1.5 * step) + 1
    return _moments(np.insert(series.times, holes, series.times[holes - 1])), np.insert(series.values, holes, np.nan)


def _spread(series: Series, moments: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """The values at the moments of the axis, 0 where there is none."""
    spread = np.zeros(len(moments))
    spread[np.round((series.times - moments[0]) / step).astype(int)] = np.nan_to_num(series.values)
    return spread


def _limits(axes: Axes, panel: Panel) -> None:
    low, high = axes.get_ylim()
    wanted_low, wanted_high = panel.limits
    shown = np.concatenate([np.ravel(np.asarray(line.get_ydata(), np.float64)) for line in axes.lines] or [np.zeros(1)])
    if not np.nan_to_num(shown).any():
        low, high = 0.0, 1.0  # nothing but zeros
    elif panel.unit not in (Unit.DECIBELS, Unit.FULL_SCALE):
        low = min(0.0, float(np.nanmin(shown)))
    high += 0.05 * (high - low)
    axes.set_ylim(low if wanted_low is None else wanted_low, high if wanted_high is None else wanted_high)


def _colour(name: str, index: int) -> str:
    variant = name.partition(",")[0]
    return NAMED[VARIANT_COLOURS[variant]] if variant in VARIANT_COLOURS else PALETTE[index % len(PALETTE)]


def _last(series: Series) -> float:
    known = series.values[~np.isnan(series.values)]
    return float(known[-1]) if len(known) else math.nan


def _level(panel: Panel, value: float) -> Colour:
    return next((each.colour for each in reversed(panel.thresholds) if value >= each.value), panel.floor)


def _fill(panel: Panel, value: float) -> str:
    return "white" if math.isnan(value) or not panel.thresholds else FILLS[_level(panel, value)]


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(1, room - 1)] + "…"


def _legend_rows(labels: Sequence[str], width: float) -> list[list[str]]:
    """Names by the lines of a legend; what does not fit is counted in the last."""
    rows: list[list[str]] = [[]]
    used = 0.0
    for index, label in enumerate(labels):
        needed = 0.28 + CHARACTER_INCHES * len(label)
        if used + needed > width and rows[-1]:
            if len(rows) == MAX_LEGEND_LINES:
                rows[-1][-1:] = [f"+ {len(labels) - index + 1} more"]
                break
            rows.append([])
            used = 0.0
        rows[-1].append(label)
        used += needed
    return rows


def _legend(figure: Figure, box: Box, rows: Sequence[Sequence[str]], colours: Mapping[str, str]) -> None:
    width, height = figure.get_size_inches()
    for number, row in enumerate(rows):
        x = box.left + 0.15
        y = box.bottom + 0.1 + LINE_INCHES * (len(rows) - 1 - number)
        for label in row:
            figure.text(x / width, y / height, "■", size=8, color=colours.get(label, "white"), va="center")
            figure.text((x + 0.14) / width, y / height, label, size=7.5, color=INK, va="center", parse_math=False)
            x += 0.28 + CHARACTER_INCHES * len(label)
