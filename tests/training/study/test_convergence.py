"""What the logs say about the end of training."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from speakerlens.training.study.convergence import convergence
from speakerlens.training.study.plan import Plan, make_plan
from tests.training.toy import make_corpus, toy_config


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    corpus = make_corpus(tmp_path / "corpus", seconds=0.2, interference=False)
    return make_plan(toy_config(tmp_path, "updates=100"), corpus, tmp_path / "out", ["clean", "da"], 3)


def write_log(plan: Plan, number: int, accuracy: list[float], every: int = 5) -> None:
    """A log whose dev accuracy takes a second from one to the next, with an hour's pause before its second half."""
    folder = plan.runs[number].folder
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"event": "start", "step": 0, "time": 0.0}]
    for index, value in enumerate(accuracy, start=1):
        time = lines[-1]["time"] + 1.0
        if index == len(accuracy) // 2:
            lines.append({"event": "start", "step": every * (index - 1), "time": time + 3600})
            time += 3600
        lines.append({"event": "dev", "step": every * index, "time": time + 1.0, "clean": 99.0, "corrupted": value})
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"event": "dev", "st')


def test_gains_are_slopes_over_the_last_quarter(plan: Plan) -> None:
    rising = [float(2 * index) for index in range(1, 21)]  # 10 points over the last 25 updates
    for number in range(6):
        steady = [50.0 + (0.1 if index % 2 else 0.0) * number for index in range(1, 21)]
        write_log(plan, number, [value * (1 + number / 100) for value in rising] if number % 2 else steady)
    found = convergence(plan)
    assert found.on == "corrupted"
    assert found.gains["da"].mean == pytest.approx(10.3)  # seeds' slopes times 1.01, 1.03 and 1.05
    assert abs(found.gains["clean"].mean) < 0.1
    assert found.rising == ("da",)
    curve = found.curves[plan.runs[1]]
    assert curve.updates == tuple(range(5, 101, 5))
    assert curve.accuracy[0] == pytest.approx(2.02)


def test_pauses_do_not_count_as_training(plan: Plan) -> None:
    write_log(plan, 0, [1.0] * 10)
    assert convergence(plan).curves[plan.runs[0]].seconds == pytest.approx(20.0, abs=1.5)


def test_too_few_values_give_no_slope(plan: Plan) -> None:
    for number in range(6):
        write_log(plan, number, [10.0, 20.0, 30.0, 40.0], every=25)
    found = convergence(plan)
    assert all(math.isnan(gain.mean) for gain in found.gains.values())
    assert found.rising == ()


def test_crops_are_clean_where_dev_has_no_interference(plan: Plan) -> None:
    for number in range(6):
        write_log(plan, number, [10.0, 20.0])
    for run in plan.runs:
        log = run.folder / "log.jsonl"
        log.write_text(log.read_text().replace('"corrupted"', '"other"'))
    found = convergence(plan)
    assert found.on == "clean"
    assert found.curves[plan.runs[0]].accuracy == (99.0, 99.0)
