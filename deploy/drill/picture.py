"""Draw a drill: panels of the dashboard Robustness and the alerts, over the phases of the scenario.

  python -m deploy.drill.picture docs/drill.json

draws such a file again, into a .png beside it.
"""

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deploy.grafana.model import Panel, Query, Unit
from deploy.grafana.robustness import ROBUSTNESS
from deploy.prometheus_api import Prometheus
from speakerlens import palette

TITLES = (
    "SNR by quantile",
    "Probability of the best",
    "Unknown speakers",
    "Deletion index of traffic",
    "Disagreement by pair",
    "Drift over time",
)
ALERTS = Panel(
    "Alerts that fire",
    "Which alerts fire, and for how many variants, measures or pairs?",
    "docs/operation.md has a section on each.",
    Unit.COUNT,
    (Query('sum by (alertname) (ALERTS{alertstate="firing"})', "{{alertname}}"),),
)
PANELS = (*(next(panel for panel in ROBUSTNESS.panels if panel.title == title) for title in TITLES), ALERTS)
SCRAPES_PER_RATE = 4
# Of series that are no variants: none looks like a variant's colour. Neighbours differ most.
OTHER_COLOURS = [matplotlib.colormaps["tab20b"](at) for at in (0, 12, 4, 16, 8, 2, 14, 6, 18, 10, 3, 15, 7)]
COLUMNS = 2
# A list of numbers only; it is written on one line.
NUMBERS = re.compile(r"\[\n([^]\[{}\"]*)\]")


def collect(prometheus: Prometheus, start: float, end: float, step: float, interval: float) -> dict[str, Any]:
    """Return the series of every panel by its title: name, PromQL, unit, seconds since `start`, and values.

    Args:
        prometheus: has scraped the server during the drill.
        start: of the drill, in seconds since 1970.
        end: of the drill, in seconds since 1970.
        step: between two values, in seconds.
        interval: between two scrapes, in seconds.

    Raises:
        deploy.prometheus_api.QueryError: Prometheus refuses a query.
        OSError: Prometheus cannot be reached.
    """
    window = f"{round(max(step + interval, SCRAPES_PER_RATE * interval))}s"
    panels: dict[str, Any] = {panel.title: [] for panel in PANELS}
    for panel in PANELS:
        for query in panel.queries:
            expression = re.sub(r"\$(instance|variant)\b", ".*", query.expression)
            expression = expression.replace("$__rate_interval", window)
            for series in prometheus.query_range(expression, start, end, step):
                panels[panel.title].append(
                    {
                        "series": _name(query.legend, series.labels),
                        "expression": expression,
                        "unit": str(panel.unit),
                        "seconds": [round(at - start, 2) for at in series.times.tolist()],
                        "values": [float(f"{v:.6g}") if math.isfinite(v) else None for v in series.values.tolist()],
                    }
                )
    return panels


def write(facts: Mapping[str, Any], path: Path) -> None:
    """Write a drill's facts and series as JSON, and the picture beside them.

    Raises:
        OSError: a file cannot be written.
    """
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n", encoding="utf-8")
    draw(facts, path.with_suffix(".png"))


def draw(facts: Mapping[str, Any], path: Path) -> None:
    """Draw one chart for each of `facts["panels"]`, with lines where phases of `facts["scenario"]` begin.

    Raises:
        OSError: the picture cannot be written.
    """
    rows = math.ceil(len(facts["panels"]) / COLUMNS)
    figure = Figure(figsize=(6.5 * COLUMNS, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False).ravel()
    for axis, (title, found) in zip(axes, facts["panels"].items(), strict=False):
        _chart(axis, title, found, facts["scenario"])
    for axis in axes[len(facts["panels"]) :]:
        axis.set_axis_off()
    figure.supxlabel("seconds", size=8)
    figure.savefig(path, dpi=110)


def _chart(axis: Axes, title: str, found: list[dict[str, Any]], phases: list[dict[str, Any]]) -> None:
    unit = next((each["unit"] for each in found), "").removeprefix("suffix: ")
    percent = unit == "percentunit"
    title += " (%)" if percent else " (dB)" if unit == "dB" else ""
    axis.set_title(title, size=9, loc="left", weight="bold")
    others = iter(OTHER_COLOURS * len(found))
    for each in sorted(found, key=lambda each: palette.rank(each["series"])):
        values = np.array([math.nan if value is None else value for value in each["values"]], np.float64)
        look = palette.LOOKS.get(each["series"])
        style = {"color": look.colour if look else next(others), "linewidth": 1.2, "label": each["series"]}
        axis.plot(each["seconds"], 100 * values if percent else values, **style)
    for phase in phases:
        axis.axvline(phase["begin"], color="grey", linewidth=0.7, linestyle=":")
        where = axis.get_xaxis_transform()
        axis.text(phase["begin"], 0.98, f" {phase['phase']}", transform=where, size=6.5, va="top", color="grey")
    axis.tick_params(labelsize=7)
    axis.grid(visible=True, linewidth=0.4)
    if found:
        axis.legend(fontsize=6, ncols=1 + len(found) // 6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _name(legend: str, labels: Mapping[str, str]) -> str:
    """Return a legend with `{{label}}` replaced by the label's value."""
    return " ".join(re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda mark: labels.get(mark[1], ""), legend).split())


if __name__ == "__main__":
    file = Path(sys.argv[1])
    draw(json.loads(file.read_text("utf-8")), file.with_suffix(".png"))
