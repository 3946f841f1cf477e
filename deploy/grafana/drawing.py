"""A dashboard as a picture, drawn from what a Prometheus answers to its panels: what Grafana would show.

Panels stand as on Grafana's grid, under the headlines of their rows; times are UTC. Needs matplotlib.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from deploy.grafana.filling import everything, fill, name, rate_interval
from deploy.grafana.model import COLUMNS, Dashboard, Kind, Panel, Place, Row, layout
from deploy.grafana.plots import INK, MUTED, PLOTS, Box, Line, Span
from deploy.prometheus_api import Prometheus, Series

DPI = 100
COLUMN_INCHES, UNIT_INCHES = 0.65, 0.38
MARGIN_INCHES, HEAD_INCHES, GAP_INCHES = 0.15, 0.6, 0.06


def draw(
    dashboard: Dashboard,
    prometheus: str,
    span: Span,
    path: Path,
    *,
    scrape_interval: float,
    choices: Mapping[str, str] | None = None,
    titles: Collection[str] = (),
) -> None:
    """Draws a dashboard to a file, as its suffix says (.png, .svg, .pdf).

    Args:
        dashboard: which.
        prometheus: address of the Prometheus that has the data.
        span: of time, with marks to draw at moments in it.
        path: of the picture.
        scrape_interval: Prometheus' own, in seconds; rates are taken over four of them or more.
        choices: values of variables; All where one is missing.
        titles: only these panels, in the dashboard's order; all where it is empty.

    Raises:
        ValueError: there is no panel of that title.
        deploy.prometheus_api.QueryError: Prometheus refuses a query.
        OSError: there is no Prometheus, or the picture cannot be written.
    """
    shown = only(dashboard, titles) if titles else dashboard
    source = Prometheus(prometheus)
    rate_seconds = rate_interval(scrape_interval, span.step)
    filled = everything(dashboard) | dict(choices or {})
    parts = list(layout(shown))
    height = sum(_bottom(parts)) * UNIT_INCHES + HEAD_INCHES + 2 * MARGIN_INCHES
    figure = Figure(figsize=(COLUMNS * COLUMN_INCHES + 2 * MARGIN_INCHES, height), dpi=DPI, facecolor="#f1f2f4")
    top = height - MARGIN_INCHES - HEAD_INCHES
    head = Box(MARGIN_INCHES, top, COLUMNS * COLUMN_INCHES, HEAD_INCHES)
    head.write(figure, shown.title, size=15, weight="bold", colour=INK, y=0.62)
    head.write(figure, shown.description, size=10, colour=MUTED, y=0.18)
    for part, place in parts:
        box = _box(place, top)
        if isinstance(part, Row):
            box.write(figure, part.title, size=12, weight="bold", colour=INK, y=0.4)
            continue
        lines = _ask(source, part, filled, rate_seconds, span)
        PLOTS[part.kind](figure, box.framed(figure, part.title), part, lines, span)
    figure.savefig(path)


def only(dashboard: Dashboard, titles: Collection[str]) -> Dashboard:
    """The dashboard with these panels alone, in as few lines as they need.

    Raises:
        ValueError: there is no panel of that title.
    """
    unknown = set(titles) - {panel.title for panel in dashboard.panels}
    if unknown:
        raise ValueError(f"{dashboard.title} has no panel {', '.join(sorted(unknown))}")
    rows = (replace(row, panels=tuple(p for p in row.panels if p.title in titles)) for row in dashboard.rows)
    return replace(dashboard, rows=tuple(row for row in rows if row.panels))


def _ask(source: Prometheus, panel: Panel, choices: Mapping[str, str], rate_seconds: float, span: Span) -> list[Line]:
    lines: list[Line] = []
    for query in panel.queries:
        expression = fill(query.expression, choices, rate_seconds)
        found = _answer(source, panel, expression, span)
        lines += [Line(name(query.legend, series.labels), series, query.reference) for series in found]
    return lines


def _answer(source: Prometheus, panel: Panel, expression: str, span: Span) -> list[Series]:
    if panel.kind is Kind.TABLE:
        return source.query(expression, span.end)
    return source.query_range(expression, span.start, span.end, span.step)


def _bottom(parts: list[tuple[Row | Panel, Place]]) -> list[int]:
    return [max(place.y + place.height for _, place in parts)]


def _box(place: Place, top: float) -> Box:
    return Box(
        MARGIN_INCHES + place.x * COLUMN_INCHES + GAP_INCHES,
        top - (place.y + place.height) * UNIT_INCHES + GAP_INCHES,
        place.width * COLUMN_INCHES - 2 * GAP_INCHES,
        place.height * UNIT_INCHES - 2 * GAP_INCHES,
    )
