"""The rules and alerts of deploy/prometheus: valid, firing when they should and only then, and documented."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.programs import find
from speakerlens.serving.errors import Reason
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.metrics.robustness import SNR_BANDS
from speakerlens.serving.robustness.drift import Drift
from tests.conftest import ROOT
from tests.deploy.prometheus import needs_prometheus
from tests.test_readme import anchors

FOLDER = ROOT / "deploy" / "prometheus"
UNIT_TESTS = sorted((Path(__file__).parent / "rules").glob("*.yml"))
RULE_FILES = [FOLDER / "recording.yml", FOLDER / "alerts.yml"]


def promtool(*arguments: str | Path) -> str:
    program = find("promtool")
    assert program is not None, "promtool is not installed"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def rules() -> Iterator[dict[str, Any]]:
    for file in RULE_FILES:
        for group in yaml.safe_load(file.read_text("utf-8"))["groups"]:
            yield from group["rules"]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = [rule for rule in rules() if "record" in rule]


@needs_prometheus
def test_promtool_accepts_the_configuration() -> None:
    assert "2 rule files found" in promtool("check", "config", FOLDER / "prometheus.yml")


@needs_prometheus
@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda file: file.stem)
def test_alerts_fire_only_when_they_should(file: Path) -> None:
    promtool("test", "rules", file)


def test_every_alert_is_tested_firing_and_silent() -> None:
    cases: dict[str, set[bool]] = {name: set() for name in ALERTS}
    for file in UNIT_TESTS:
        for test in yaml.safe_load(file.read_text("utf-8"))["tests"]:
            for case in test["alert_rule_test"]:
                cases[case["alertname"]].add(bool(case.get("exp_alerts")))
    assert not {name: seen for name, seen in cases.items() if len(seen) < 2}


def test_every_alert_is_documented() -> None:
    page = (ROOT / "docs" / "operation.md").read_text("utf-8")
    sections = set(re.findall(r"^### (Speakerlens\w+)$", page, re.MULTILINE))
    assert sections == set(ALERTS)
    for name, alert in ALERTS.items():
        notes = alert["annotations"]
        assert set(notes) == {"summary", "description", "runbook"}, name
        assert alert["labels"]["severity"] in ("critical", "warning"), name
        file, _, anchor = notes["runbook"].partition("#")
        assert (ROOT / file).is_file()
        assert anchor == name.lower()
        assert anchor in anchors(page)


def test_recorded_ranges_match_their_names() -> None:
    ranged = 0
    for rule in RECORDED:
        if named := re.search(r"_(?:rate|avg|increase)(\d+[mhd])$|:increase(\d+[mhd])$", rule["record"]):
            assert set(re.findall(r"\[(\w+)\]", rule["expr"])) == {named[1] or named[2]}, rule["record"]
            ranged += 1
    assert ranged > 20


def test_rules_select_existing_metrics() -> None:
    registry = Metrics().registry
    registry.register(Drift(100))
    served = {
        name for family in registry.collect() for name in (family.name, f"{family.name}_total", f"{family.name}_bucket")
    }
    recorded = {rule["record"] for rule in RECORDED}
    for rule in rules():
        expression = rule["expr"]
        assert set(re.findall(r"\bspeakerlens_\w+", expression)) <= served, expression
        assert set(re.findall(r"\bspeakerlens:[\w:]+", expression)) <= recorded, expression
        for label, known in (("reason", set(Reason)), ("snr_band", set(SNR_BANDS))):
            for values in re.findall(rf'{label}=~?"([^"]*)"', expression):
                assert set(values.split("|")) <= known, expression


def test_unit_tests_evaluate_recorded_rules_first() -> None:
    groups = [group["name"] for file in RULE_FILES for group in yaml.safe_load(file.read_text("utf-8"))["groups"]]
    for file in UNIT_TESTS:
        assert yaml.safe_load(file.read_text("utf-8"))["group_eval_order"] == groups, file


def test_every_recorded_series_is_used() -> None:
    asked = " ".join(rule["expr"] for rule in ALERTS.values())
    for rule in RECORDED:
        assert rule["record"] in asked, rule["record"]
