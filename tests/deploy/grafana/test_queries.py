"""Run every panel's and every rule's PromQL against a Prometheus that scraped the real server."""

from typing import Any

import numpy as np
import pytest
import yaml

from deploy.grafana.catalogue import DASHBOARDS
from deploy.grafana.model import Dashboard, Kind, Panel
from deploy.prometheus_api import Series
from tests.deploy.grafana.conftest import RULES, VARIANTS, WINDOW_SECONDS, Watched
from tests.deploy.grafana.filling import MARK, everything, fill
from tests.deploy.prometheus import needs_prometheus
from tests.deploy.promql import selectors

pytestmark = needs_prometheus

STEP = 1.0
PANELS = [
    pytest.param(dashboard, panel, id=f"{stem}/{panel.title}")
    for stem, dashboard in DASHBOARDS.items()
    for panel in dashboard.panels
]
# Absent while nothing is wrong; the panel then shows a series `none`.
ON_EVENT = {"speakerlens_engine_rebuilds_total", "ALERTS"}


def rules() -> list[Any]:
    read = [yaml.safe_load(file.read_text("utf-8")) for file in RULES]
    found = [rule for file in read for group in file["groups"] for rule in group["rules"]]
    return [pytest.param(rule["expr"], id=f"{rule.get('alert') or rule['record']}-{n}") for n, rule in enumerate(found)]


def answers(watched: Watched, panel: Panel, choices: dict[str, str]) -> list[tuple[str, list[Series]]]:
    """Return the legend and the series of each query, as the panel would ask for them."""
    filled = [(query.legend, fill(query.expression, choices, WINDOW_SECONDS)) for query in panel.queries]
    if panel.kind is Kind.TABLE:
        return [(legend, watched.prometheus.query(expression, watched.end)) for legend, expression in filled]
    return [
        (legend, watched.prometheus.query_range(expression, watched.start, watched.end, STEP))
        for legend, expression in filled
    ]


def instances(watched: Watched) -> set[str]:
    return {each.labels["instance"] for each in watched.prometheus.query("up", watched.end)}


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_panel_has_data(watched: Watched, dashboard: Dashboard, panel: Panel) -> None:
    for legend, found in answers(watched, panel, everything(dashboard)):
        assert found, legend
        assert any(np.isfinite(series.values).any() for series in found), legend
        for series in found:
            assert {mark for mark in MARK.findall(legend) if mark not in series.labels} <= _may_lack(series), legend
        shown = MARK.findall(legend)
        if panel.matrix:
            shown = [panel.matrix.rows, panel.matrix.columns]
            assert all(set(shown) <= series.labels.keys() for series in found)
        if panel.kind is not Kind.TABLE or panel.matrix:
            names = {tuple(series.labels.get(mark, "") for mark in shown) for series in found}
            assert len(names) == len(found), f"{legend}: two series have one name"


def _may_lack(series: Series) -> set[str]:
    """Return the labels that the series `none` lacks."""
    return {"code", "outcome", "reason"} if "none" in series.labels.values() else set()


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_panel_has_data_of_a_chosen_variant(watched: Watched, dashboard: Dashboard, panel: Panel) -> None:
    """And of no other variant, wherever the series has that label."""
    (instance,) = instances(watched)
    for legend, found in answers(watched, panel, {"variant": "(clean)", "instance": f"({instance})"}):
        assert found, legend
        for series in found:
            assert series.labels.get("variant", "clean") in {"clean", "none"}, series.labels
            if "first" in series.labels:
                assert "clean" in {series.labels["first"], series.labels["second"]}


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_variables_filter_every_series_with_their_label(watched: Watched, dashboard: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        for selector in selectors(fill(query.expression, everything(dashboard), 60)):
            known = watched.prometheus.query(selector.name, watched.end)
            assert known or selector.name in ON_EVENT, f"{selector.name}: no such metric"
            if selector.name == "ALERTS":
                continue
            labels = {label for series in known for label in series.labels}
            asked = {label for label, value in selector.matchers.items() if value == "=~.*"}
            assert labels & {"instance", "variant"} <= asked, selector.text
            if "first" in labels:
                assert asked & {"first", "second"}, selector.text


@pytest.mark.parametrize("expression", rules())
def test_rule_selects_existing_series(watched: Watched, expression: str) -> None:
    watched.prometheus.query(expression, watched.end)  # raises if Prometheus refuses it
    for selector in selectors(expression):
        # Recorded series have a rule of their own in this list.
        if selector.name not in ON_EVENT and not selector.name.startswith("speakerlens:"):
            assert watched.prometheus.query_range(selector.text, watched.start, watched.end, STEP), selector.text


@pytest.mark.parametrize("stem", DASHBOARDS)
def test_variables_offer_the_served_variants(watched: Watched, stem: str) -> None:
    dashboard = DASHBOARDS[stem]
    for variable in dashboard.variables:
        series = watched.prometheus.query(fill(variable.series, everything(dashboard), 60), watched.end)
        offered = {each.labels[variable.name] for each in series}
        assert offered == {"variant": set(VARIANTS), "instance": instances(watched)}[variable.name]
