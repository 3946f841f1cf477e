"""Training logs of a study's runs: validated, starts, and accuracy on the dev split over the updates."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from speakerlens.training.checkpoint import LOG
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.intervals import Estimate, over_seeds
from speakerlens.training.run_log import read_log, training_seconds
from speakerlens.training.study.plan import Plan, PlannedRun

LAST_SHARE = 0.25
"""Share of the updates, at the end, over which the gain is measured."""

_OF_START = {"parameters": Real, "device": str, "threads": Real, "torch": str, "code_revision": str}
_FEWEST_VALUES = 3  # for a straight line

Record = Mapping[str, Any]


@dataclass(frozen=True)
class DevCurve:
    """Accuracy of one run on the dev split.

    Attributes:
        updates: done, rising; accuracy: in percent, on corrupted crops, or on clean ones where there are no others.
        gain: points gained over the last quarter of the updates, by a straight line; NaN with fewer than three values.
        seconds: of training, without pauses between interruption and resumption.
    """

    updates: tuple[int, ...]
    accuracy: tuple[float, ...]
    gain: float
    seconds: float


@dataclass(frozen=True)
class Convergence:
    """The dev curves of a study.

    Attributes:
        on: "corrupted" crops, or "clean" ones where the dev split has no interference.
        curves: by run. gains: by variant, points gained over the last quarter, over seeds.
    """

    on: str
    curves: dict[PlannedRun, DevCurve]
    gains: dict[str, Estimate]


def starts(plan: Plan) -> dict[PlannedRun, tuple[Record, ...]]:
    """Return the log lines of each run's starts and resumptions; at least one per run.

    Raises:
        UserError: a log is missing or incomplete; the message names file and line.
    """
    return {
        run: tuple(record for record in _validated(run, plan.config.updates) if record["event"] == "start")
        for run in plan.runs
    }


def convergence(plan: Plan) -> Convergence:
    """Read the dev curves of all runs of a plan."""
    logs = {run: read_log(run.folder) for run in plan.runs}
    evaluations = {run: [line for line in log if line["event"] == "dev"] for run, log in logs.items()}
    on = "corrupted" if all("corrupted" in line for lines in evaluations.values() for line in lines) else "clean"
    curves = {}
    for run, lines in evaluations.items():
        points = [(line["step"], line[on]) for line in lines]
        updates, accuracy = np.array(points, dtype=np.float64).reshape(-1, 2).T
        gain = _gain(updates, accuracy, plan.config.updates)
        seconds = training_seconds(logs[run])
        curves[run] = DevCurve(tuple(updates.astype(int).tolist()), tuple(accuracy.tolist()), gain, seconds)
    gains = {
        variant: over_seeds(np.array([curve.gain for run, curve in curves.items() if run.variant == variant]))
        for variant in plan.variants
    }
    return Convergence(on, curves, gains)


def _validated(run: PlannedRun, updates: int) -> list[Record]:
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
                break  # cut short at the end of the process; missing updates are found below
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
    """Return what a line lacks; None if nothing."""
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


def _gain(updates: NDArray[np.float64], accuracy: NDArray[np.float64], total: int) -> float:
    """Return the slope of a straight line through the last quarter, times the quarter's length."""
    last = updates >= (1 - LAST_SHARE) * total
    if last.sum() < _FEWEST_VALUES:
        return np.nan
    return float(scipy.stats.linregress(updates[last], accuracy[last]).slope * LAST_SHARE * total)
