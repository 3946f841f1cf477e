"""The logs of the runs of a study, read once they are trained: whole, or refused with the reason."""

import json
from collections.abc import Mapping
from numbers import Real
from typing import Any

from speakerlens.training.checkpoint import LOG
from speakerlens.training.errors import UserError
from speakerlens.training.study.plan import Plan, PlannedRun

_OF_START = {"parameters": Real, "device": str, "threads": Real, "torch": str, "code_revision": str}

Record = Mapping[str, Any]


def starts(plan: Plan) -> dict[PlannedRun, tuple[Record, ...]]:
    """Give the lines with which each run's training started and went on; at least one a run.

    Raises:
        UserError: a log is missing, or does not tell what the report needs of it; the message names file and line.
    """
    return {
        run: tuple(record for record in _history(run, plan.config.updates) if record["event"] == "start")
        for run in plan.runs
    }


def _history(run: PlannedRun, updates: int) -> list[Record]:
    path = run.folder / LOG
    remedy = f"put the log of that training back, or delete {run.folder} and train it again"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{path}: the log of the training of {run} cannot be read ({reason}); {remedy}") from error
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break  # cut short by the end of a process; whether anything is missing is seen below
            raise UserError(f"{path}: line {number} is not JSON; {remedy}") from error
        if fault := _fault(record):
            raise UserError(f"{path}: line {number} {fault}; {remedy}")
        records.append(record)
    if not any(record["event"] == "start" for record in records):
        raise UserError(f"{path}: has no line of the training's start; {remedy}")
    if (last := max(record["step"] for record in records)) < updates:
        raise UserError(f"{path}: ends after update {last:g} of {updates}; {remedy}")
    return records


def _fault(record: Any) -> str | None:
    """Say what a line lacks of what is read from it; None if nothing."""
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return 'is no object with an "event"'
    wanted: dict[str, type] = {"step": Real, "time": Real}
    if record["event"] == "start":
        wanted |= _OF_START
    if record["event"] == "dev":
        wanted |= {name: Real for name in ("clean", "corrupted") if name == "clean" or name in record}
    for name, kind in wanted.items():
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, kind) or str(value) == "nan":
            return f'has no {"number" if kind is Real else "text"} for "{name}"'
    return None
