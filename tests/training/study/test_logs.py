"""Training logs: validated with file, line and remedy in the error, and their dev curves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from speakerlens.training.errors import UserError
from speakerlens.training.study.logs import convergence, starts
from speakerlens.training.study.plan import Plan, make_plan
from tests.training.toy import make_corpus, toy_config

START = {"event": "start", "step": 0, "time": 1.0, "parameters": 9, "device": "cpu", "threads": 1, "torch": "2"}
LINES: list[dict[str, Any]] = [
    {**START, "code_revision": "abc"},
    {"event": "dev", "step": 50, "time": 2.0, "clean": 80.0, "corrupted": 50.0},
    {"event": "update", "step": 100, "time": 3.0, "loss": 1.0},
    {"event": "dev", "step": 100, "time": 4.0, "clean": 90.0, "corrupted": 60.0},
]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    corpus = make_corpus(tmp_path / "corpus", seconds=0.2, interference=False)
    return make_plan(toy_config(tmp_path, "updates=100"), corpus, tmp_path / "out", ["clean"], 1)


def write(plan: Plan, text: str) -> Path:
    folder = plan.runs[0].folder
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text(text)
    return folder


def changed(number: int, **entries: Any) -> str:
    lines = [{**line, **entries} if index == number else line for index, line in enumerate(LINES)]
    return "\n".join(map(json.dumps, lines)) + "\n"


def test_a_cut_last_line_is_ignored(plan: Plan) -> None:
    write(plan, changed(0, step=0) + '{"event": "stop", "st')
    assert starts(plan) == {plan.runs[0]: (LINES[0],)}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "has no line of the training's start"),
        ("\n" + changed(0), "line 1 is not JSON"),
        ("null\n" + changed(0), 'line 1 is no object with an "event"'),
        (changed(1).replace('{"event": "dev"', '{"even', 1), "line 2 is not JSON"),
        (changed(1, corrupted=None), 'line 2 has no number for "corrupted"'),
        (changed(1, clean=float("nan")), 'line 2 has no number for "clean"'),
        (changed(2, step="100"), 'line 3 has no number for "step"'),
        (changed(0, parameters=None), 'line 1 has no number for "parameters"'),
        (changed(0, code_revision=None), 'line 1 has no text for "code_revision"'),
        (changed(0, event="begin"), "has no line of the training's start"),
        ("\n".join(changed(0).splitlines()[:2]), "ends after update 50 of 100"),
    ],
)
def test_fault_of_a_log_is_named(plan: Plan, text: str, fault: str) -> None:
    folder = write(plan, text)
    with pytest.raises(UserError) as caught:
        starts(plan)
    assert fault in str(caught.value)
    assert str(caught.value).startswith(str(folder / "log.jsonl"))
    assert f"or delete {folder} and train it again" in str(caught.value)


def test_missing_log_is_named(plan: Plan) -> None:
    with pytest.raises(UserError, match=r"log\.jsonl: the log of the training of seed 3, clean cannot be read"):
        starts(plan)


@pytest.fixture
def two_variants(tmp_path: Path) -> Plan:
    corpus = make_corpus(tmp_path / "corpus", seconds=0.2, interference=False)
    return make_plan(toy_config(tmp_path, "updates=100"), corpus, tmp_path / "out", ["clean", "da"], 3)


def write_log(two_variants: Plan, number: int, accuracy: list[float], every: int = 5) -> None:
    """A log whose dev accuracy takes a second from one to the next, with an hour's pause before its second half."""
    folder = two_variants.runs[number].folder
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"event": "start", "step": 0, "time": 0.0}]
    for index, value in enumerate(accuracy, start=1):
        time = lines[-1]["time"] + 1.0
        if index == len(accuracy) // 2:
            lines.append({"event": "start", "step": every * (index - 1), "time": time + 3600})
            time += 3600
        lines.append({"event": "dev", "step": every * index, "time": time + 1.0, "clean": 99.0, "corrupted": value})
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"event": "dev", "st')


def test_gains_are_slopes_over_the_last_quarter(two_variants: Plan) -> None:
    rising = [float(2 * index) for index in range(1, 21)]  # 10 points over the last 25 updates
    for number in range(6):
        steady = [50.0 + (0.1 if index % 2 else 0.0) * number for index in range(1, 21)]
        write_log(two_variants, number, [value * (1 + number / 100) for value in rising] if number % 2 else steady)
    found = convergence(two_variants)
    assert found.on == "corrupted"
    assert found.gains["da"].mean == pytest.approx(10.3)  # seeds' slopes times 1.01, 1.03 and 1.05
    assert abs(found.gains["clean"].mean) < 0.1
    assert [variant for variant, gain in found.gains.items() if gain.sign > 0] == ["da"]
    curve = found.curves[two_variants.runs[1]]
    assert curve.updates == tuple(range(5, 101, 5))
    assert curve.accuracy[0] == pytest.approx(2.02)


def test_pauses_do_not_count_as_training(two_variants: Plan) -> None:
    write_log(two_variants, 0, [1.0] * 10)
    assert convergence(two_variants).curves[two_variants.runs[0]].seconds == pytest.approx(20.0, abs=1.5)


def test_too_few_values_have_no_gain(two_variants: Plan) -> None:
    for number in range(6):
        write_log(two_variants, number, [10.0, 20.0, 30.0, 40.0], every=25)
    found = convergence(two_variants)
    assert all(math.isnan(gain.mean) for gain in found.gains.values())


def test_crops_are_clean_where_dev_has_no_interference(two_variants: Plan) -> None:
    for number in range(6):
        write_log(two_variants, number, [10.0, 20.0])
    for run in two_variants.runs:
        log = run.folder / "log.jsonl"
        log.write_text(log.read_text().replace('"corrupted"', '"other"'))
    found = convergence(two_variants)
    assert found.on == "clean"
    assert found.curves[two_variants.runs[0]].accuracy == (99.0, 99.0)
