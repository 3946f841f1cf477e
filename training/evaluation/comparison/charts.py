"""Charts as inline SVG, without scripts: hovering a mark shows its values, and the page's boxes hide variants by class.

Text and marks take their colours from the page's style sheet. Sizes are in units of the view box, which a phone shows
at about one pixel each.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib.image import imsave
from numpy.typing import NDArray

WIDTH = 340.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 12.0, 10.0, 36.0
_HEIGHT = 220.0
_ROW = 15.0  # of a row of dots
_TIP_LINE = 13.0
_REACH = 8.0  # of a mark, for a finger
_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_FAINTEST = 0.08  # of a cell that is not empty
_MARKERS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M-3.6-3.6h7.2v7.2h-7.2z",
    "^": "M0-4.8L4.6 3.6H-4.6z",
    "v": "M0 4.8L4.6-3.6H-4.6z",
    "D": "M0-5L5 0L0 5L-5 0z",
    "P": "M-1.7-4.7h3.4v3h3v3.4h-3v3h-3.4v-3h-3v-3.4h3z",
}
_OTHER_MARKER = "M-4.4-2.2L-2.2-4.4L0-2.2L2.2-4.4L4.4-2.2L2.2 0L4.4 2.2L2.2 4.4L0 2.2L-2.2 4.4L-4.4 2.2L-2.2 0z"


class Series(NamedTuple):
    """How a variant is drawn: its class in the page, and its marker (matplotlib's name)."""

    name: str
    css: str
    marker: str


@dataclass(frozen=True)
class Mark:
    """A value with its interval, and the lines that hovering it shows."""

    x: float
    y: float
    tip: tuple[str, ...]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """Marks joined by a line, and marks apart from it."""

    series: Series
    joined: tuple[Mark, ...]
    apart: tuple[Mark, ...] = ()


def marker(name: str) -> Markup:
    """Return a marker of 10 by 10 around the origin, for legends."""
    return Markup('<path d="{}"/>').format(_MARKERS.get(name, _OTHER_MARKER))


def line_chart(
    title: str, lines: Sequence[Line], ticks: Mapping[float, str], x_label: str, diagonal: bool = False
) -> Markup:
    """Draw shares in [0, 1] over x, a line for each series, with its intervals as a band."""
    inside = (WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM)
    low, high = min(ticks), max(ticks)

    def x(value: float) -> float:
        return _LEFT + 8 + (inside[0] - 16) * (value - low) / ((high - low) or 1)

    def y(share: float) -> float:
        return _TOP + inside[1] * (1 - share)

    parts = [
        _line(_LEFT, y(s), WIDTH - _RIGHT, y(s), "grid") + _text(_LEFT - 5, y(s) + 4, f"{s:.0%}", "end")
        for s in _SHARES
    ]
    parts += [_text(x(value), _HEIGHT - _BOTTOM + 15, label, "middle") for value, label in ticks.items()]
    parts.append(_text(_LEFT + inside[0] / 2, _HEIGHT - 5, x_label, "middle"))
    if diagonal:
        parts.append(_line(x(0), y(0), x(1), y(1), "dotted"))
    for line in lines:
        path = [(x(mark.x), y(mark.y)) for mark in line.joined]
        lows, highs = ([(x(mark.x), y(mark.interval[end])) for mark in line.joined if mark.interval] for end in (0, 1))
        drawn = [_path([*lows, *reversed(highs)], "band")] if len(lows) == len(path) and path else []
        drawn.append(_path(path, "line"))
        drawn += [_mark(line.series, x(mark.x), y(mark.y)) for mark in (*line.joined, *line.apart)]
        parts.append(_group(line.series.css, drawn))
    parts += [
        _group(
            line.series.css, [_hover(x(mark.x), y(mark.y), mark.tip, _HEIGHT) for mark in (*line.joined, *line.apart)]
        )
        for line in lines
    ]
    return _svg(title, _HEIGHT, parts)


def dot_chart(title: str, rows: Sequence[tuple[str, Sequence[tuple[Series, Mark]]]], x_label: str) -> Markup:
    """Draw shares in [0, 1] as marks, a row for each label."""
    left, bottom = 96.0, 36.0
    height = _TOP + _ROW * len(rows) + bottom

    def x(share: float) -> float:
        return left + 6 + (WIDTH - left - _RIGHT - 12) * share

    end = height - bottom
    parts = [_line(x(s), _TOP, x(s), end, "grid") + _text(x(s), end + 14, f"{s:.0%}", "middle") for s in _SHARES]
    parts.append(_text(x(0.5), height - 5, x_label, "middle"))
    hovers = []
    for place, (label, marks) in enumerate(rows):
        y = _TOP + _ROW * (place + 0.5)
        parts.append(_text(left - 4, y + 4, label if len(label) <= 14 else f"{label[:13]}…", "end"))
        for series, mark in marks:
            parts.append(_group(series.css, [_mark(series, x(mark.x), y)]))
            hovers.append(_group(series.css, [_hover(x(mark.x), y, mark.tip, height, _ROW / 2)]))
    return _svg(title, height, [*parts, *hovers])


def matrix_chart(
    title: str, series: Series, names: Sequence[str], cells: Iterable[tuple[int, int, float, tuple[str, ...]]]
) -> Markup:
    """Draw shares as cells (row, column, share, tip), the darker the larger; rows are true, columns named speakers."""
    left, top = 60.0, 52.0
    size = (WIDTH - left - 4) / len(names)
    height = top + size * len(names) + 4
    font = Markup("font-size:{}px").format(round(min(10.0, size), 1))
    parts = [_text(left - 3, top - 6, "true ↓ named →", "end", "font-size:7px")]
    for place, name in enumerate(names):
        middle, short = size * (place + 0.5), name if len(name) <= 9 else f"{name[:8]}…"
        parts.append(_text(left - 3, top + middle + min(10.0, size) / 3, short, "end", font))
        turned = Markup(
            '<text class="axis" text-anchor="start" style="{}" transform="translate({} {})rotate(-60)">{}</text>'
        )
        parts.append(turned.format(font, _n(left + middle + 2), _n(top - 3), short))
    parts.append(
        Markup('<rect class="frame" x="{}" y="{}" width="{}" height="{}"/>').format(
            *map(_n, (left, top, size * len(names), size * len(names)))
        )
    )
    hovers = []
    for row, column, share, tip in cells:
        x, y = left + size * column, top + size * row
        cell = Markup('<rect class="cell" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"/>')
        opacity = _FAINTEST + (1 - _FAINTEST) * share
        parts.append(_group(series.css, [cell.format(_n(x), _n(y), _n(size), _n(size), _n(opacity, 2))]))
        hovers.append(_hover(x + size / 2, y + size / 2, tip, height, size / 2))
    return _svg(title, height, [*parts, *hovers])


def map_chart(
    title: str, layers: Mapping[str, str], height: float, frequencies: Mapping[str, float], times: Mapping[str, float]
) -> Markup:
    """Draw pictures over each other, on axes of kilohertz and seconds.

    Args:
        title: of the chart, for those who do not see it.
        layers: address of each picture, lowest first, by the class that hides it.
        height: of the chart.
        frequencies: labels, each with its place from 0, the bottom, to 1.
        times: labels, each with its place from 0, the left, to 1.
    """
    left, bottom = 30.0, 30.0
    width, tall = WIDTH - left - 6, height - bottom - 4
    parts = [
        Markup('<image class="{}" x="{}" y="4" width="{}" height="{}" preserveAspectRatio="none" href="{}"/>').format(
            name, _n(left), _n(width), _n(tall), address
        )
        for name, address in layers.items()
    ]
    parts.append(
        Markup('<rect class="frame" x="{}" y="4" width="{}" height="{}"/>').format(*map(_n, (left, width, tall)))
    )
    parts += [_text(left - 4, 4 + tall * (1 - place) + 4, label, "end") for label, place in frequencies.items()]
    parts += [_text(left + width * place, 4 + tall + 13, label, "middle") for label, place in times.items()]
    parts.append(_text(left + width / 2, height - 3, "seconds; frequency in kHz", "middle"))
    return _svg(title, height, parts)


def png_url(pixels: NDArray[np.uint8]) -> str:
    """Return pixels as a data URL, RGBA [rows, columns, 4]; the first row is the lowest."""
    content = io.BytesIO()
    imsave(content, np.ascontiguousarray(pixels[::-1]), format="png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def _svg(title: str, height: float, parts: Iterable[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(_n(WIDTH), _n(height), title) + Markup("\n").join(parts) + Markup("</svg>")


def _group(css: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<g class="{}">{}</g>').format(css, Markup("").join(parts))


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(css, *map(_n, (x1, y1, x2, y2)))


def _path(points: Sequence[tuple[float, float]], css: str) -> Markup:
    return Markup('<path class="{}" d="M{}"/>').format(css, "L".join(f"{_n(x)} {_n(y)}" for x, y in points))


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> Markup:
    styled = Markup(' style="{}"').format(style) if style else ""
    return Markup('<text class="axis" x="{}" y="{}" text-anchor="{}"{}>{}</text>').format(
        _n(x), _n(y), anchor, styled, text
    )


def _mark(series: Series, x: float, y: float) -> Markup:
    shape = _MARKERS.get(series.marker, _OTHER_MARKER)
    return Markup('<path class="mark" transform="translate({} {})" d="{}"/>').format(_n(x), _n(y), shape)


def _hover(x: float, y: float, tip: Sequence[str], height: float, reach: float = _REACH) -> Markup:
    """Return an invisible disc that shows lines of text while it is pointed at: above it, or below near the top."""
    anchor = "start" if x < WIDTH / 3 else "end" if x > WIDTH * 2 / 3 else "middle"
    above = y - 10 - _TIP_LINE * (len(tip) - 1)
    first = above if above > _TIP_LINE else min(y + 20, height - _TIP_LINE * len(tip))
    lines = Markup("").join(
        Markup('<tspan x="{}" y="{}">{}</tspan>').format(_n(x), _n(first + _TIP_LINE * place), escape(line))
        for place, line in enumerate(tip)
    )
    return Markup(
        '<g class="hover"><circle cx="{}" cy="{}" r="{}"/><text class="tip" text-anchor="{}">{}</text></g>'
    ).format(_n(x), _n(y), _n(reach), anchor, lines)


def _n(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"
