"""The dashboards: committed JSON, layout, and rules for queries."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.catalogue import DASHBOARDS
from deploy.grafana.model import (
    COLUMNS,
    Colour,
    Dashboard,
    Kind,
    Matrix,
    Number,
    Panel,
    Query,
    Row,
    Threshold,
    Unit,
    layout,
)
from deploy.grafana.rendering import render
from deploy.grafana.robustness import ROBUSTNESS
from deploy.grafana.robustness.probes import shortfall
from speakerlens import palette
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.robustness.drift import Drift
from tests.conftest import ROOT
from tests.deploy.grafana.filling import everything, fill
from tests.deploy.prometheus import needs_prometheus
from tests.deploy.promql import Selector, selectors
from tests.deploy.test_rules import promtool

FOLDER = ROOT / "deploy" / "grafana"
PANELS = [
    pytest.param(dashboard, panel, id=f"{stem}/{panel.title}")
    for stem, dashboard in DASHBOARDS.items()
    for panel in dashboard.panels
]
every_panel = pytest.mark.parametrize(("dashboard", "panel"), PANELS)
OVER_TIME = {"rate", "increase", "irate"}


def asked(dashboard: Dashboard, panel: Panel) -> list[Selector]:
    """Return all selectors of a panel's queries."""
    filled = [fill(query.expression, everything(dashboard), 60) for query in panel.queries]
    return [selector for expression in filled for selector in selectors(expression)]


def known_series() -> dict[str, str]:
    """Return the type of each metric on the server's page, by the name of its series."""
    names: dict[str, str] = {}
    registry = Metrics().registry
    registry.register(Drift(100))
    for family in registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + suffix: family.type for suffix in suffixes}
    return names


KNOWN = known_series()


@pytest.mark.parametrize("stem", DASHBOARDS)
def test_committed_json_is_up_to_date(stem: str) -> None:
    committed = (FOLDER / "dashboards" / f"{stem}.json").read_text("utf-8")
    assert committed == render(DASHBOARDS[stem]), "run `make dashboards`"


def test_names_are_unique() -> None:
    assert len({dashboard.uid for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    for dashboard in DASHBOARDS.values():
        titles = [panel.title for panel in dashboard.panels]
        assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("stem", DASHBOARDS)
def test_panels_do_not_overlap(stem: str) -> None:
    written = json.loads((FOLDER / "dashboards" / f"{stem}.json").read_text("utf-8"))
    assert len({panel["id"] for panel in written["panels"]}) == len(written["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in written["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert cells, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    # Lines of panels leave no holes.
    height = max(y for _, y in taken) + 1
    assert len(taken) == COLUMNS * height


def test_full_line_wraps() -> None:
    def panel(title: str, width: int, height: int) -> Panel:
        return Panel(title, "?", "", Unit.COUNT, (), width=width, height=height)

    row = Row("row", (panel("a", 16, 4), panel("b", 8, 6), panel("c", 24, 2)))
    made = Dashboard("uid", "title", "", (row, Row("next", ())))
    places = {part.title: (place.x, place.y, place.width, place.height) for part, place in layout(made)}
    assert places == {
        "row": (0, 0, 24, 1),
        "a": (0, 1, 16, 4),
        "b": (16, 1, 8, 6),
        "c": (0, 7, 24, 2),
        "next": (0, 9, 24, 1),
    }
    with pytest.raises(ValueError, match="wider"):
        list(layout(Dashboard("uid", "title", "", (Row("row", (panel("d", 25, 1),)),))))


@every_panel
def test_panel_has_question_and_action(dashboard: Dashboard, panel: Panel) -> None:
    assert "?" in panel.question
    assert len(panel.action) > 20
    assert panel.queries
    assert panel.unit in Unit
    if panel.kind is Kind.LINES:
        assert all(query.legend for query in panel.queries)
    assert [each.value for each in panel.thresholds] == sorted(each.value for each in panel.thresholds)


@every_panel
def test_every_metric_exists(dashboard: Dashboard, panel: Panel) -> None:
    for selector in asked(dashboard, panel):
        assert selector.name in KNOWN.keys() | {"up", "ALERTS"}


@every_panel
def test_counters_are_read_through_a_rate(dashboard: Dashboard, panel: Panel) -> None:
    for selector in asked(dashboard, panel):
        if KNOWN.get(selector.name) in {"counter", "histogram"}:
            assert selector.around, selector.text
            assert selector.around[0] in OVER_TIME, selector.text
        else:
            assert not OVER_TIME & set(selector.around), selector.text


@every_panel
def test_quantiles_are_of_summed_rates(dashboard: Dashboard, panel: Panel) -> None:
    for selector in asked(dashboard, panel):
        if "histogram_quantile" in selector.around:
            assert selector.around[:3] == ("rate", "sum", "histogram_quantile"), selector.text
            assert "le" in selector.kept[0]
        elif selector.name.endswith("_bucket"):
            assert panel.kind is Kind.HEATMAP
            assert selector.around[:2] == ("increase", "sum")
            assert selector.kept[0] == {"le"}


@every_panel
def test_queries_filter_by_instance(dashboard: Dashboard, panel: Panel) -> None:
    for selector in asked(dashboard, panel):
        if selector.name == "ALERTS":
            assert selector.matchers["alertname"] == "=~Speakerlens.*", "Prometheus may have other alerts, too"
        else:
            assert selector.matchers.get("instance") == "=~.*", selector.text


def test_queries_are_filled_in() -> None:
    choices = {"variant": "(da|act-da)", "instance": r"10\\.0\\.0\\.1:8000"}
    expression = (
        'rate(x{variant=~"$variant", instance=~"$instance"}[$__rate_interval]) + label_replace(y, "a", "$1", "b", "c")'
    )
    filled = fill(expression, choices, 60.4)
    assert filled == (
        r'rate(x{variant=~"(da|act-da)", instance=~"10\\.0\\.0\\.1:8000"}[60s]) + label_replace(y, "a", "$1", "b", "c")'
    )
    with pytest.raises(ValueError, match="variant"):
        fill(expression, {"instance": ".*"}, 60)


def provisioning(path: str) -> Any:
    return yaml.safe_load((FOLDER / "provisioning" / path).read_text("utf-8"))


def test_provisioning_names_source_and_folder() -> None:
    (source,) = provisioning("datasources/prometheus.yaml")["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = provisioning("dashboards/speakerlens.yaml")["providers"]
    assert provider["type"] == "file"
    assert Path(provider["options"]["path"]).is_absolute()


def test_json_matches_the_panels() -> None:
    for dashboard in DASHBOARDS.values():
        made = json.loads(render(dashboard))
        assert [each["name"] for each in made["templating"]["list"]] == ["source", "instance", "variant"]
        for variable in made["templating"]["list"][1:]:
            assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".*")
        panels = [panel for panel in made["panels"] if panel["type"] != "row"]
        assert len(panels) == len(dashboard.panels)
        for panel, source in zip(panels, dashboard.panels, strict=True):
            assert panel["description"].startswith(source.question)
            assert panel["fieldConfig"]["defaults"]["unit"] == str(source.unit)
            assert panel["datasource"]["uid"] == "${source}"
            assert [target["expr"] for target in panel["targets"]] == [query.expression for query in source.queries]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${source}"}
            assert all(target["instant"] == source.instant for target in panel["targets"])
            assert source.instant == (
                source.kind is Kind.TABLE or (source.kind is Kind.NUMBER and bool(source.thresholds))
            )


@needs_prometheus
@pytest.mark.parametrize("by", ["variant", "variant, interference, snr"])
def test_one_broken_server_of_many_is_visible(tmp_path: Path, by: str) -> None:
    """Its shortfall is not averaged with the healthy servers."""
    series = [
        {
            "series": f'speakerlens_probe_{kind}accuracy_ratio{{job="speakerlens", instance="{instance}", '
            'variant="da", interference="noise", snr="10"}',
            "values": str(0.1 if (kind, instance) == ("", "c") else 0.9),
        }
        for kind in ("", "expected_")
        for instance in ("a", "b", "c")
    ]
    labels = '{variant="da"}' if by == "variant" else '{variant="da", interference="noise", snr="10"}'
    expression = f"round({fill(shortfall(by), everything(ROBUSTNESS), 60)}, 0.01)"
    asked = {"expr": expression, "eval_time": "0m", "exp_samples": [{"labels": labels, "value": 0.8}]}
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}), encoding="utf-8")
    promtool("test", "rules", file)


def test_reference_is_dashed() -> None:
    queries = (Query("a", "a"), Query("b", "b", reference=True))
    panel = Panel("p", "?", "", Unit.COUNT, queries, stacked=True)
    made = json.loads(render(Dashboard("uid", "title", "", (Row("row", (panel,)),))))["panels"][1]
    (override,) = made["fieldConfig"]["overrides"]
    assert override["matcher"] == {"id": "byFrameRefID", "options": "B"}
    assert override["properties"][0]["value"]["fill"] == "dash"


def test_matrix_is_sorted_and_named() -> None:
    panel = Panel("p", "?", "", Unit.COUNT, (Query("a", "a"),), kind=Kind.TABLE, matrix=Matrix("snr", "variant"))
    made = json.loads(render(Dashboard("uid", "title", "", (Row("row", (panel,)),))))["panels"][1]
    steps = [(each["id"], each["options"]) for each in made["transformations"]]
    assert [step for step, _ in steps] == ["sortBy", "sortBy", "groupingToMatrix", "organize"]
    assert [options["sort"][0]["field"] for _, options in steps[:2]] == ["snr", "variant"]
    assert (steps[2][1]["rowField"], steps[2][1]["columnField"]) == ("snr", "variant")
    assert steps[3][1]["renameByName"] == {"snr\\variant": "snr"}


def test_matrix_of_variants_has_their_order() -> None:
    panel = Panel("p", "?", "", Unit.COUNT, (Query("a", "a"),), kind=Kind.TABLE, matrix=Matrix("snr", "variant"))
    made = json.loads(render(Dashboard("uid", "title", "", (Row("row", (panel,)),))))["panels"][1]
    order = made["transformations"][-1]["options"]["indexByName"]
    assert sorted(order, key=order.__getitem__)[:4] == ["snr\\variant", "clean", "da", "act-da"]


def test_variant_has_the_colour_of_the_figures() -> None:
    panel = Panel("p", "?", "", Unit.COUNT, (Query("a", "{{variant}}"),))
    made = json.loads(render(Dashboard("uid", "title", "", (Row("row", (panel,)),))))["panels"][1]
    colours = {
        override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"]
        for override in made["fieldConfig"]["overrides"]
    }
    assert colours == {f"/^{variant}(,.*)?$/": look.colour for variant, look in palette.LOOKS.items()}


@needs_prometheus
@pytest.mark.parametrize(("value", "state"), [(0.01, "good"), (0.05, "watch"), (0.3, "bad")])
def test_number_names_its_state(tmp_path: Path, value: float, state: str) -> None:
    thresholds = (Threshold(0.05, Colour.WATCH), Threshold(0.2, Colour.BAD))
    panel = Number("p", "?", "", Unit.SHARE, (Query("x", "{{variant}}"),), thresholds=thresholds)
    (query,) = panel.queries
    assert query.legend == "{{variant}}: {{state}}"
    series = [{"series": 'x{variant="da"}', "values": str(value)}]
    sample = {"labels": f'x{{variant="da", state="{state}"}}', "value": value}
    asked = {"expr": query.expression, "eval_time": "0m", "exp_samples": [sample]}
    file = tmp_path / "test.yml"
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}), encoding="utf-8")
    promtool("test", "rules", file)


@every_panel
def test_no_state_is_told_by_colour_alone(dashboard: Dashboard, panel: Panel) -> None:
    if not panel.thresholds:
        return
    assert "States: " in panel.description
    made = next(each for each in json.loads(render(dashboard))["panels"] if each["title"] == panel.title)
    if panel.kind is Kind.NUMBER:
        assert all("{{state}}" in query.legend for query in panel.queries)
        assert made["options"]["textMode"] == "value_and_name"
    elif panel.kind is Kind.TABLE:
        assert made["fieldConfig"]["defaults"]["custom"]["cellOptions"]["type"] == "gauge"
        assert {"min", "max"} <= made["fieldConfig"]["defaults"].keys()
    else:
        assert made["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"]["mode"] == "dashed"
