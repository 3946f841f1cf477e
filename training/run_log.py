"""Read the log of a training run."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from speakerlens.training.checkpoint import LOG


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's log, without lines that are still being written; empty if there is no log."""
    try:
        lines = (run / LOG).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def training_seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of training in a log, without pauses between interruption and resumption."""
    return float(sum(after["time"] - before["time"] for before, after in pairwise(log) if after["event"] != "start"))
