"""What an evaluation found, in numbers: scores with their intervals, and the files that hold them."""

import csv
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.conditions import CLEAN_KIND, SEED, Condition

CSV_COLUMNS = ("variant", "interference", "snr_db", "top1", "top5", "utterances")
TOP = 5

_NORMAL_95 = 1.959964  # 97.5 % point of the normal distribution
_RESAMPLES = 1000

Interval = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """Accuracy of one variant in one condition.

    Attributes:
        variant: its name in this evaluation.
        interference: "clean" or a kind of interference.
        snr_db: the ratio in decibels; None for "clean".
        top1: share of the utterances whose speaker had the highest score, in [0, 1]; top5: was among the first five.
        utterances: how many were heard.
        top1_interval: Wilson 95 % interval of the share; top5_interval likewise.
    """

    variant: str
    interference: str
    snr_db: float | None
    top1: float
    top5: float
    utterances: int
    top1_interval: Interval
    top5_interval: Interval


@dataclass(frozen=True)
class Summary:
    """Accuracy of one variant over conditions, each counted the same.

    Attributes:
        variant: its name in this evaluation.
        clean: top-1 on clean speech; clean_interval: its Wilson 95 % interval.
        mean: mean top-1 over all conditions with interference; mean_interval: 95 %, by bootstrap over the utterances.
        kinds: mean top-1 over the ratios of each kind.
    """

    variant: str
    clean: float
    clean_interval: Interval
    mean: float
    mean_interval: Interval
    kinds: Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """Mean top-1 under interference of `variant` minus that of `reference`, on the same mixtures.

    The interval is 95 %, by bootstrap over the utterances, which are drawn for both alike.
    """

    variant: str
    reference: str
    mean: float
    interval: Interval


@dataclass(frozen=True)
class Deletion:
    """Deletion index of one variant's maps in one condition: 1 is blind to where the interference is, 0 keeps off it.

    Attributes:
        variant: its name in this evaluation.
        interference: a kind; snr_db: its ratio.
        map: "s1" to "s4", or "fused".
        index: mean over the utterances; interval: 95 %, from the standard error.
        utterances: how many had an index (none where the map is empty or no bin is dominated).
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
    """Everything that the JSON file and the report say.

    Attributes:
        about: date, command, machine, versions, corpus, seed, runs: see `training.evaluation.evaluate`.
        variants: names, in the order of the runs; kinds: of interference; snrs_db: ratios of each.
        left_out: kinds that the corpus cannot supply, each with what it lacks.
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
        """Look up the score of one variant in one condition."""
        key = (variant, interference, snr_db)
        return next(score for score in self.scores if (score.variant, score.interference, score.snr_db) == key)

    def top1(self, variant: str, kind: str, snr_db: float | None) -> tuple[float, Interval | None]:
        """Top-1 accuracy and its interval; the kind "mean" averages all kinds, and has none."""
        if kind == "mean":
            return float(np.mean([self.score(variant, each, snr_db).top1 for each in self.kinds])), None
        score = self.score(variant, kind, snr_db)
        return score.top1, score.top1_interval


def wilson(hits: float, trials: int) -> Interval:
    """Give the 95 % interval of a share (Wilson, 1927): never outside [0, 1], and sound near its ends."""
    share, z2 = hits / trials, _NORMAL_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _NORMAL_95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    # Exactly 0 and 1 at the ends, where rounding would leave it a hair off.
    return (0.0 if hits == 0 else centre - half, 1.0 if hits == trials else centre + half)


def score_all(variants: Sequence[str], conditions: Sequence[Condition], ranks: NDArray[np.int64]) -> tuple[Score, ...]:
    """Count hits.

    Args:
        variants: names.
        conditions: in the order of `ranks`.
        ranks: of the true speaker among all, 1 is best, [variant, condition, utterance].
    """
    trials = ranks.shape[2]
    scores = []
    for (row, variant), (column, condition) in itertools.product(enumerate(variants), enumerate(conditions)):
        first, among = (int((ranks[row, column] <= k).sum()) for k in (1, TOP))
        scores.append(
            Score(
                variant,
                condition.kind,
                condition.snr_db,
                first / trials,
                among / trials,
                trials,
                wilson(first, trials),
                wilson(among, trials),
            )
        )
    return tuple(scores)


def summarise(
    variants: Sequence[str], conditions: Sequence[Condition], ranks: NDArray[np.int64]
) -> tuple[tuple[Summary, ...], tuple[Difference, ...]]:
    """Average top-1 over conditions, and compare the averages; arguments as for `score_all`."""
    hits = (ranks <= 1).astype(np.float64)
    kinds = list(dict.fromkeys(condition.kind for condition in conditions if condition.kind != CLEAN_KIND))
    of_kind = {kind: [i for i, condition in enumerate(conditions) if condition.kind == kind] for kind in kinds}
    clean = next(i for i, condition in enumerate(conditions) if condition.kind == CLEAN_KIND)
    corrupted = [i for i in range(len(conditions)) if i != clean]
    by_utterance = hits[:, corrupted].mean(axis=1)
    means, resampled = by_utterance.mean(axis=1), bootstrap_means(by_utterance)
    trials = ranks.shape[2]
    summaries = tuple(
        Summary(
            variant,
            float(hits[row, clean].mean()),
            wilson(int(hits[row, clean].sum()), trials),
            float(means[row]),
            interval_of(resampled[row]),
            {kind: float(hits[row, of_kind[kind]].mean()) for kind in kinds},
        )
        for row, variant in enumerate(variants)
    )
    differences = tuple(
        Difference(
            variants[row],
            variants[other],
            float(means[row] - means[other]),
            interval_of(resampled[row] - resampled[other]),
        )
        for other, row in itertools.combinations(range(len(variants)), 2)
    )
    return summaries, differences


def bootstrap_means(by_utterance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Resample utterances with replacement, the same ones for every row, [row, utterance] -> means [row, resample]."""
    rng = np.random.default_rng(SEED)
    count = by_utterance.shape[1]
    return np.stack([by_utterance[:, rng.integers(count, size=count)].mean(axis=1) for _ in range(_RESAMPLES)], axis=1)


def interval_of(values: NDArray[np.float64]) -> Interval:
    """Give the central 95 % of resampled values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def average_deletion(variant: str, condition: Condition, name: str, indices: NDArray[np.float64]) -> Deletion:
    """Average the deletion index of one map over utterances [U]; NaN marks those that have none."""
    found = indices[np.isfinite(indices)]
    mean = float(found.mean()) if len(found) else math.nan
    half = _NORMAL_95 * float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    snr_db = math.nan if condition.snr_db is None else condition.snr_db
    return Deletion(variant, condition.kind, snr_db, name, mean, (mean - half, mean + half), len(found))


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write everything; what has no value (NaN) is null, as JSON has no other word for it."""
    path.write_text(json.dumps(without_nan(asdict(evaluation)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write the scores, a row for each variant and condition; `snr_db` is empty for clean speech."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(score) for score in evaluation.scores)


def without_nan(value: object) -> object:
    """Make NaN and infinities None, anywhere inside mappings, lists and tuples: JSON has no other word for them."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
