"""Results of an evaluation, and the files that hold them."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.accuracy import Difference, Score, Summary
from speakerlens.training.evaluation.conditions import Condition
from speakerlens.training.evaluation.intervals import Interval, normal_interval

CSV_COLUMNS = ("variant", "interference", "snr_db", "top1", "top5", "utterances")


@dataclass(frozen=True)
class Deletion:
    """Deletion index of one variant's maps in one condition: 1 ignores where the interference is, 0 avoids it.

    Attributes:
        variant: its name in this evaluation.
        interference: a kind; snr_db: its ratio.
        map: "s1" to "s4", or "fused".
        index: mean over the utterances; interval: 95 %, from the standard error.
        utterances: how many have an index (none where the map is empty or no bin is dominated).
    """

    variant: str
    interference: str
    snr_db: float
    map: str
    index: float
    interval: Interval
    utterances: int


@dataclass(frozen=True)
class Evaluation:
    """Content of the JSON file and of the report.

    Attributes:
        about: date, command, machine, versions, corpus, seed, runs: see `training.evaluation.comparison.evaluate`.
        variants: names, in the order of the runs; kinds: of interference; snrs_db: ratios of each.
        left_out: kinds that the corpus cannot supply, each with the reason.
        deletion_setup: on which utterances the deletion index was measured, and how.
    """

    about: Mapping[str, object]
    variants: tuple[str, ...]
    kinds: tuple[str, ...]
    snrs_db: tuple[float, ...]
    left_out: Mapping[str, str]
    scores: tuple[Score, ...]
    summaries: tuple[Summary, ...]
    differences: tuple[Difference, ...]
    deletion_setup: Mapping[str, object]
    deletion: tuple[Deletion, ...]

    def score(self, variant: str, interference: str, snr_db: float | None) -> Score:
        """Return the score of one variant in one condition."""
        key = (variant, interference, snr_db)
        return next(score for score in self.scores if (score.variant, score.interference, score.snr_db) == key)

    def top1(self, variant: str, kind: str, snr_db: float | None) -> tuple[float, Interval | None]:
        """Return top-1 accuracy and its interval; the kind "mean" averages all kinds, and has no interval."""
        if kind == "mean":
            return float(np.mean([self.score(variant, each, snr_db).top1 for each in self.kinds])), None
        score = self.score(variant, kind, snr_db)
        return score.top1, score.top1_interval


def average_deletion(variant: str, condition: Condition, name: str, indices: NDArray[np.float64]) -> Deletion:
    """Average the deletion index of one map over utterances [U]; NaN marks those that have none."""
    finite = indices[np.isfinite(indices)]
    mean = float(finite.mean()) if len(finite) else math.nan
    snr_db = math.nan if condition.snr_db is None else condition.snr_db
    return Deletion(variant, condition.kind, snr_db, name, mean, normal_interval(finite), len(finite))


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write everything as JSON; NaN becomes null."""
    path.write_text(json.dumps(without_nan(asdict(evaluation)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write the scores, a row for each variant and condition; `snr_db` is empty for clean speech."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(score) for score in evaluation.scores)


def without_nan(value: object) -> object:
    """Replace NaN and infinities by None inside mappings, lists and tuples: JSON has no such numbers."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
