"""The drill: its rules, its verdict, its picture, and, slow, the drill itself."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.drill import rules
from deploy.drill.alerts import Change, Expected, Watch, faults
from deploy.drill.picture import PANELS, draw
from deploy.prometheus_process import PrometheusProcess
from tests.conftest import ROOT
from tests.deploy.prometheus import needs_prometheus
from tests.deploy.test_rules import FOLDER, promtool

DRIFT = {"measure": "snr_db", "variant": "da", "severity": "warning"}
EXPECTED = [Expected("Drift", {"measure": "snr_db"})]


def test_rules_differ_only_in_durations(tmp_path: Path) -> None:
    for file in rules.write(tmp_path, scale=0.05, interval=1.0):
        slow = [rule for group in read(FOLDER / file.name) for rule in group["rules"]]
        fast = [rule for group in read(file) for rule in group["rules"]]
        for ours, theirs in zip(slow, fast, strict=True):
            assert {**ours, "expr": "", "for": ""} == {**theirs, "expr": "", "for": ""}
            assert ("for" in ours) == ("for" in theirs)
            before, after = (re.split(r"\[(\w+)\]", rule["expr"]) for rule in (ours, theirs))
            assert before[::2] == after[::2]
            assert len(before) == len(after)
        text = file.read_text("utf-8")
        if file.name == "alerts.yml":
            (drift,) = (rule for rule in fast if rule["alert"] == "SpeakerlensDrift")
            assert drift["for"] == "30000ms"
            (stopped,) = (rule for rule in fast if rule["alert"] == "SpeakerlensProbesStopped")
            assert stopped["for"] == "10m"
        else:
            assert "[15000ms]" in text
            assert "[4320000ms]" in text


def test_ranges_hold_at_least_four_scrapes(tmp_path: Path) -> None:
    recording, _ = rules.write(tmp_path, scale=0.001, interval=1.0)
    assert "[4000ms]" in recording.read_text("utf-8")


@needs_prometheus
def test_shortened_rules_are_valid(tmp_path: Path) -> None:
    promtool("check", "rules", *rules.write(tmp_path, scale=0.05, interval=1.0))


def read(file: Path) -> list[dict[str, list[dict[str, str]]]]:
    groups: list[dict[str, list[dict[str, str]]]] = yaml.safe_load(file.read_text("utf-8"))["groups"]
    return groups


def changes(*steps: tuple[float, bool]) -> list[Change]:
    return [Change(at, firing, "Drift", DRIFT) for at, firing in steps]


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        ([(100, True), (200, False)], ""),
        ([(100, True), (120, False), (130, True), (200, False)], ""),
        ([], "never fired"),
        ([(50, True), (200, False)], "before there was interference"),
        ([(200, True), (250, False)], "did not fire between"),
        ([(100, True)], "has not cleared"),
        ([(100, True), (120, False), (130, True)], "has not cleared"),
    ],
)
def test_verdict_on_an_alert(steps: list[tuple[float, bool]], fault: str) -> None:
    found = faults(changes(*steps), EXPECTED, begin=75, end=180)
    assert (fault in found[0] and found[0].startswith("Drift (snr_db) ")) if fault else not found


def test_other_measure_or_critical_alert_fails() -> None:
    other = [Change(100, True, "Drift", {**DRIFT, "measure": "seconds"})]
    assert faults(other, EXPECTED, 75, 180) == ["Drift (snr_db) never fired"]
    down = Change(90, True, "TargetDown", {"severity": "critical"})
    assert "TargetDown" in faults([*changes((100, True), (200, False)), down], EXPECTED, 75, 180)[0]


@needs_prometheus
def test_alerts_are_seen_to_fire_and_clear(tmp_path: Path) -> None:
    alert = {"alert": "Odd", "expr": "vector(time() % 6) < 3", "labels": {"measure": "x"}}
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "odd", "rules": [alert]}]}), "utf-8")
    with PrometheusProcess(tmp_path / "prometheus", [], [file], interval=0.5) as prometheus:
        watch = Watch(prometheus)
        prometheus.wait_for(lambda: watch.poll(1.0) is not None and len(watch.changes) >= 3, 60)
    assert [change.firing for change in watch.changes[:3]] == [True, False, True]
    assert str(watch.changes[0]) == "FIRES   Odd (x)"
    assert str(watch.changes[1]) == "clears  Odd (x)"


def test_committed_drill_can_be_drawn(tmp_path: Path) -> None:
    facts = json.loads((ROOT / "docs" / "drill.json").read_text("utf-8"))
    assert list(facts["panels"]) == [panel.title for panel in PANELS]
    assert facts["panels"]["Alerts that fire"]
    draw(facts, tmp_path / "drill.png")
    assert (tmp_path / "drill.png").read_bytes().startswith(b"\x89PNG")


@needs_prometheus
@pytest.mark.slow
def test_drill_passes_on_trained_bundles(bundles: Path, corpus: Path, tmp_path: Path) -> None:
    command = ["--bundles", bundles, "--audio", corpus, "--out", tmp_path, "--minutes", "2.5"]
    done = subprocess.run(
        [sys.executable, "-m", "deploy.drill", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=ROOT,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert (tmp_path / "drill.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "drill.json").read_text("utf-8"))
    assert {alert["name"] for alert in data["alerts"]} >= {"SpeakerlensInterferenceArriving", "SpeakerlensDrift"}
    for title, series in data["panels"].items():
        assert any(value is not None for each in series for value in each["values"]), title
