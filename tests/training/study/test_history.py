"""Logs of trained runs: read whole, or refused by file, line and remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from speakerlens.training.errors import UserError
from speakerlens.training.study.history import starts
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


def test_starts_are_given_also_where_the_last_line_was_cut(plan: Plan) -> None:
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
def test_what_a_log_lacks_is_said(plan: Plan, text: str, fault: str) -> None:
    folder = write(plan, text)
    with pytest.raises(UserError) as caught:
        starts(plan)
    assert fault in str(caught.value)
    assert str(caught.value).startswith(str(folder / "log.jsonl"))
    assert f"or delete {folder} and train it again" in str(caught.value)


def test_a_log_that_is_gone_is_named(plan: Plan) -> None:
    with pytest.raises(UserError, match=r"log\.jsonl: the log of the training of seed 3, clean cannot be read"):
        starts(plan)
