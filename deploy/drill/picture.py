"""A drill as a picture: panels of the dashboard Robustness, and the alerts, over the phases; and its data as JSON."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.grafana.drawing import draw
from deploy.grafana.filling import everything, fill, name, rate_interval
from deploy.grafana.model import Dashboard, Kind, Panel, Query, Row, Unit
from deploy.grafana.plots import Span
from deploy.grafana.robustness import ROBUSTNESS
from deploy.prometheus_api import Prometheus

ROWS: Mapping[str, tuple[str, ...]] = {
    "What comes in": ("SNR of the requests", "SNR by quantile"),
    "What the models make of it": ("Probability of the best", "Unknown speakers", "Deletion index of traffic"),
    "What tells of it": ("Disagreement by pair", "Drift over time"),
}
HEIGHT = 8
# A list that holds nothing but numbers; it gets a line.
NUMBERS = re.compile(r"\[\n([^]\[{}\"]*)\]")

ALERTS = Panel(
    "Alerts that fire",
    "Which alerts fire, and for how many variants, measures or pairs?",
    "docs/operation.md has a section on each.",
    Unit.COUNT,
    (Query('sum by (alertname) (ALERTS{alertstate="firing"})', "{{alertname}}"),),
    height=HEIGHT,
    limits=(0, None),
)


def dashboard(title: str, description: str) -> Dashboard:
    """Panels of Robustness beside one of alerts."""
    known = {panel.title: panel for panel in ROBUSTNESS.panels}
    rows = [Row(row, tuple(replace(known[each], height=HEIGHT) for each in titles)) for row, titles in ROWS.items()]
    rows[-1] = replace(rows[-1], panels=(*rows[-1].panels, ALERTS))
    return replace(ROBUSTNESS, title=title, description=description, rows=tuple(rows))


def write(shown: Dashboard, prometheus: Prometheus, span: Span, interval: float, path: Path, facts: Any) -> None:
    """Draws the picture, and writes what it was drawn from, with other facts, into a .json beside it.

    Raises:
        deploy.prometheus_api.QueryError: Prometheus refuses a query.
        OSError: there is no Prometheus, or a file cannot be written.
    """
    draw(shown, prometheus.url, span, path, scrape_interval=interval)
    panels = {panel.title: _data(panel, shown, prometheus, span, interval) for panel in shown.panels}
    text = json.dumps({**facts, "panels": panels}, indent=1, ensure_ascii=False, allow_nan=False)
    text = NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def _data(panel: Panel, shown: Dashboard, prometheus: Prometheus, span: Span, interval: float) -> list[dict[str, Any]]:
    """Every series of a panel: its name, its PromQL, and values by seconds after the beginning."""
    found = []
    for query in panel.queries:
        expression = fill(query.expression, everything(shown), rate_interval(interval, span.step))
        for series in prometheus.query_range(expression, span.start, span.end, span.step):
            label = series.labels.get("le", "") if panel.kind is Kind.HEATMAP else name(query.legend, series.labels)
            found.append(
                {
                    "series": label,
                    "expression": expression,
                    "unit": str(panel.unit),
                    "seconds": [round(at - span.start, 2) for at in series.times.tolist()],
                    "values": [_rounded(value) for value in series.values.tolist()],
                }
            )
    return found


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
