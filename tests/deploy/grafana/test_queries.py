"""Every panel's and every rule's PromQL, against a Prometheus that has watched the real server under mixed traffic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from deploy.grafana.catalogue import DASHBOARDS
from deploy.grafana.drawing import draw
from deploy.grafana.filling import MARK, everything, fill
from deploy.grafana.model import Dashboard, Kind, Panel
from deploy.grafana.plots import Span
from deploy.prometheus_api import Series
from tests.deploy.grafana.conftest import RULES, VARIANTS, WINDOW_SECONDS, Watched
from tests.deploy.prometheus import needs_prometheus
from tests.deploy.promql import selectors

pytestmark = needs_prometheus

STEP = 1.0
PANELS = [
    pytest.param(dashboard, panel, id=f"{stem}/{panel.title}")
    for stem, dashboard in DASHBOARDS.items()
    for panel in dashboard.panels
]
# What may be absent while nothing is wrong: the panel says so with a series of its own.
ON_EVENT = {"speakerlens_engine_rebuilds_total", "ALERTS"}


def rules() -> list[Any]:
    read = [yaml.safe_load(file.read_text("utf-8")) for file in RULES]
    found = [rule for file in read for group in file["groups"] for rule in group["rules"]]
    return [pytest.param(rule["expr"], id=f"{rule.get('alert') or rule['record']}-{n}") for n, rule in enumerate(found)]


def answers(watched: Watched, panel: Panel, choices: dict[str, str]) -> list[tuple[str, list[Series]]]:
    """What each query of a panel gives, with its legend, as the panel would ask it."""
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
def test_a_panel_has_data(watched: Watched, dashboard: Dashboard, panel: Panel) -> None:
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
    """The series that says that nothing happened has one label alone."""
    return {"code", "outcome", "reason"} if "none" in series.labels.values() else set()


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_a_panel_has_data_of_a_chosen_variant(watched: Watched, dashboard: Dashboard, panel: Panel) -> None:
    """And of no other, wherever there is a label that tells."""
    (instance,) = instances(watched)
    for legend, found in answers(watched, panel, {"variant": "(clean)", "instance": f"({instance})"}):
        assert found, legend
        for series in found:
            assert series.labels.get("variant", "clean") in {"clean", "none"}, series.labels
            if "first" in series.labels:
                assert "clean" in {series.labels["first"], series.labels["second"]}


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_variables_are_used_wherever_the_label_is(watched: Watched, dashboard: Dashboard, panel: Panel) -> None:
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
def test_a_rule_asks_for_what_there_is(watched: Watched, expression: str) -> None:
    watched.prometheus.query(expression, watched.end)  # raises where Prometheus refuses it
    for selector in selectors(expression):
        # What is recorded has a rule of its own here.
        if selector.name not in ON_EVENT and not selector.name.startswith("speakerlens:"):
            assert watched.prometheus.query_range(selector.text, watched.start, watched.end, STEP), selector.text


@pytest.mark.parametrize("stem", DASHBOARDS)
def test_variables_offer_what_is_served(watched: Watched, stem: str) -> None:
    dashboard = DASHBOARDS[stem]
    for variable in dashboard.variables:
        series = watched.prometheus.query(fill(variable.series, everything(dashboard), 60), watched.end)
        offered = {each.labels[variable.name] for each in series}
        assert offered == {"variant": set(VARIANTS), "instance": instances(watched)}[variable.name]


@pytest.mark.parametrize("stem", DASHBOARDS)
def test_a_dashboard_is_drawn(watched: Watched, stem: str, tmp_path: Path) -> None:
    dashboard, picture = DASHBOARDS[stem], tmp_path / "picture.png"
    span = Span(watched.start, watched.end, STEP, {watched.start + 10: "noise"})
    draw(dashboard, watched.prometheus.url, span, picture, scrape_interval=1, titles=[dashboard.panels[0].title])
    small = picture.stat().st_size
    draw(dashboard, watched.prometheus.url, span, picture, scrape_interval=1)
    assert picture.stat().st_size > 5 * small
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no panel No such"):
        draw(dashboard, watched.prometheus.url, span, picture, scrape_interval=1, titles=["No such"])
