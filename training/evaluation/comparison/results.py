"""Results of an evaluation, and the files that hold them."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.accuracy import Difference, Score, Summary
from speakerlens.training.evaluation.conditions import Condition
from speakerlens.training.evaluation.intervals import Interval, normal_interval
from speakerlens.training.evaluation.maps.deletion import Target
from speakerlens.training.evaluation.metrics import ReliabilityBin

MEAN = "mean"
"""Stands for the kind where all kinds of interference are averaged."""

CSV_COLUMNS = ("variant", "interference", "snr_db", "top1", "top5", "utterances")


@dataclass(frozen=True)
class Deletion:
    """Deletion index of one variant's maps in one condition: 1 ignores where the interference is, 0 avoids it.

    Attributes:
        variant: its name in this evaluation.
        interference: a kind, or "mean" of all conditions; snr_db: its ratio, NaN for the mean.
        map: "s1" to "s4", or "fused".
        target: whose score the map explains.
        index: mean over the utterances; interval: 95 %, from the standard error.
        clean_index: the same bins, but the map of the same utterance without interference.
        change: index minus clean index, mean over the utterances: the reaction to the interference; change_interval:
            95 %, from the standard error of the differences.
        utterances: how many have an index (none where the map is empty or no bin is dominated).
    """

    variant: str
    interference: str
    snr_db: float
    map: str
    target: Target
    index: float
    interval: Interval
    clean_index: float
    change: float
    change_interval: Interval
    utterances: int


@dataclass(frozen=True)
class SpeakerScores:
    """What became of the test utterances of every speaker under interference.

    Attributes:
        speakers: in the order of the labels.
        named: by variant, by true speaker, by named speaker: how many mixtures, [speaker][speaker].
    """

    speakers: tuple[str, ...]
    named: Mapping[str, tuple[tuple[int, ...], ...]]

    def accuracy(self, variant: str, speaker: int) -> float:
        """Return top-1 of one speaker under interference; NaN without utterances."""
        row = self.named[variant][speaker]
        return row[speaker] / sum(row) if sum(row) else math.nan

    def confusions(self, variant: str) -> list[tuple[int, int, int]]:
        """Return wrong answers as (true, named, mixtures), the most frequent first."""
        rows = self.named[variant]
        found = [(t, n, count) for t, row in enumerate(rows) for n, count in enumerate(row) if t != n and count]
        return sorted(found, key=lambda each: -each[2])


@dataclass(frozen=True)
class Confidence:
    """Calibration of one variant: set on dev utterances, measured on the test mixtures of all conditions.

    Attributes:
        temperature: probabilities are softmax(logits / temperature).
        threshold: on the score of the best speaker; below it the speaker is unknown.
        utterances: of the dev split that both rest on; 0 where there are none, and both have no effect.
        bins: reliability diagram of the calibrated probabilities; error: expected calibration error, in [0, 1].
    """

    temperature: float
    threshold: float
    utterances: int
    bins: tuple[ReliabilityBin, ...]
    error: float


@dataclass(frozen=True)
class Evaluation:
    """Content of the JSON file and of the report.

    Attributes:
        about: date, command, machine, versions, corpus, seed, runs: see `training.evaluation.comparison.evaluate`.
        variants: names, in the order of `speakerlens.palette.rank`; kinds: of interference; snrs_db: ratios of each.
        left_out: kinds that the corpus cannot supply, each with the reason.
        deletion_setup: on which utterances the deletion index was measured, and how.
        deletion: by variant, condition, map and target. deletion_means: of all conditions.
        speaker_scores: by speaker, under interference.
        confidence: by variant.
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
    deletion_means: tuple[Deletion, ...] = ()
    speaker_scores: SpeakerScores = field(default_factory=lambda: SpeakerScores((), {}))
    confidence: Mapping[str, Confidence] = field(default_factory=dict)

    def score(self, variant: str, interference: str, snr_db: float | None) -> Score:
        """Return the score of one variant in one condition."""
        key = (variant, interference, snr_db)
        return next(score for score in self.scores if (score.variant, score.interference, score.snr_db) == key)

    def top1(self, variant: str, kind: str, snr_db: float | None) -> tuple[float, Interval | None]:
        """Return top-1 accuracy and its interval; the kind "mean" averages all kinds, and has no interval."""
        if kind == MEAN:
            return float(np.mean([self.score(variant, each, snr_db).top1 for each in self.kinds])), None
        score = self.score(variant, kind, snr_db)
        return score.top1, score.top1_interval


def average_deletion(
    variant: str,
    condition: Condition,
    name: str,
    indices: NDArray[np.float64],
    clean_indices: NDArray[np.float64],
    target: Target = "true",
) -> Deletion:
    """Average the deletion index of one map over utterances [U]; NaN marks those that have none.

    Args:
        variant: its name.
        condition: the interference; its ratio is None for the mean of several.
        name: of the map.
        indices: of the mixtures, [U].
        clean_indices: of the same utterances without interference, [U].
        target: whose score the map explains.
    """
    finite, change = indices[np.isfinite(indices)], indices - clean_indices
    both = change[np.isfinite(change)]
    mean, clean_mean, change_mean = (
        float(values.mean()) if len(values) else math.nan
        for values in (finite, clean_indices[np.isfinite(clean_indices)], both)
    )
    return Deletion(
        variant,
        condition.kind,
        math.nan if condition.snr_db is None else condition.snr_db,
        name,
        target,
        mean,
        normal_interval(finite),
        clean_mean,
        change_mean,
        normal_interval(both),
        len(finite),
    )


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
