"""Had the runs stopped improving? Accuracy on the dev split while they trained, read from their logs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.intervals import Estimate, over_seeds
from speakerlens.training.study.plan import Plan, PlannedRun
from speakerlens.training.study.runner import read_log

LAST_SHARE = 0.25
"""The last quarter of the updates is looked at."""


@dataclass(frozen=True)
class DevCurve:
    """Accuracy on the dev split of one run.

    Attributes:
        updates: done, rising; accuracy: in percent, on corrupted crops, or on clean ones where there are no others.
        gain: points gained over the last quarter of the updates, by a straight line through its values; NaN if there
            are fewer than three.
        seconds: spent in training; pauses between interruption and resumption do not count.
    """

    updates: tuple[int, ...]
    accuracy: tuple[float, ...]
    gain: float
    seconds: float


@dataclass(frozen=True)
class Convergence:
    """The dev curves of a study.

    Attributes:
        on: which crops were heard: "corrupted", or "clean" where the dev split has no interference.
        curves: by run. gains: by variant, points gained over the last quarter, over seeds.
    """

    on: str
    curves: dict[PlannedRun, DevCurve]
    gains: dict[str, Estimate]

    @property
    def rising(self) -> tuple[str, ...]:
        """Variants whose accuracy still rose, as far as their seeds tell."""
        return tuple(variant for variant, gain in self.gains.items() if gain.sign > 0)


def convergence(plan: Plan) -> Convergence:
    """Read the logs of all runs of a plan."""
    logs = {run: read_log(run.folder) for run in plan.runs}
    evaluations = {run: [line for line in log if line["event"] == "dev"] for run, log in logs.items()}
    on = "corrupted" if all("corrupted" in line for lines in evaluations.values() for line in lines) else "clean"
    curves = {}
    for run, lines in evaluations.items():
        points = [(line["step"], line[on]) for line in lines]
        updates, accuracy = np.array(points, dtype=np.float64).reshape(-1, 2).T
        gain = _gain(updates, accuracy, plan.config.updates)
        curves[run] = DevCurve(tuple(updates.astype(int).tolist()), tuple(accuracy.tolist()), gain, _seconds(logs[run]))
    gains = {
        variant: over_seeds(np.array([curve.gain for run, curve in curves.items() if run.variant == variant]))
        for variant in plan.variants
    }
    return Convergence(on, curves, gains)


def _gain(updates: NDArray[np.float64], accuracy: NDArray[np.float64], total: int) -> float:
    """Slope of a straight line through the last quarter, times the quarter's length; NaN with fewer than 3 values."""
    last = updates >= (1 - LAST_SHARE) * total
    if last.sum() < 3:
        return np.nan
    return float(np.polyfit(updates[last], accuracy[last], 1)[0] * LAST_SHARE * total)


def _seconds(log: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(after["time"] - before["time"] for before, after in pairwise(log) if after["event"] != "start"))
