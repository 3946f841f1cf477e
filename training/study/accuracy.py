"""Accuracy of the variants over seeds, at matched updates and at matched compute."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.conditions import CLEAN_KIND, SNRS_DB, Condition
from speakerlens.training.evaluation.intervals import Estimate, over_seeds, percentile_interval, pigeonhole_means
from speakerlens.training.study.measurements import Measurements
from speakerlens.training.study.plan import Plan, PlannedRun
from speakerlens.training.variants import VARIANTS

MEAN = "mean"
"""Name of the mean over all conditions with interference, with equal weights."""

Matching = Literal["updates", "compute"]

SAME_WORK = 0.95
"""Least ratio of the work of two variants that counts as the same: batches have whole numbers of rows, so the work is
hardly ever exactly equal."""


@dataclass(frozen=True)
class Row:
    """Top-1 accuracy of a variant, shares in [0, 1].

    Attributes:
        variant: its name.
        crops: drawn per update, in batch sizes. work: of the network per update, likewise (`Plan.work`).
        top1: by column: "mean", "clean" and each kind of interference (mean over its ratios).
    """

    variant: str
    crops: float
    work: float
    top1: dict[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Top-1 of `variant` minus that of `reference`, on the same seeds and mixtures.

    Attributes:
        variant, reference: names.
        crops, work: ratio of the variant to the reference, as in `Row`.
        top1: by column, as in `Row`; intervals by Student's t over the seeds' differences.
        resampled: the column "mean" with its interval by bootstrap over seeds and utterances.
    """

    variant: str
    reference: str
    crops: float
    work: float
    top1: dict[str, Estimate]
    resampled: Estimate

    def matches(self, matching: Matching) -> bool:
        """Return whether the two match: in "updates", the same number of crops; in "compute", the same work."""
        if matching == "updates":
            return self.crops == 1
        return min(self.work, 1 / self.work) >= SAME_WORK

    def turned(self) -> "Comparison":
        """Return the comparison with variant and reference exchanged."""
        top1 = {column: -estimate for column, estimate in self.top1.items()}
        return Comparison(self.reference, self.variant, 1 / self.crops, 1 / self.work, top1, -self.resampled)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of all variants.

    Attributes:
        rows: of every variant. comparisons: of every two of them, matched or not.
        by_condition: top-1 by (variant, kind, ratio in dB), "clean" with None; the kind "mean" averages all others.
        by_seed: mean under interference by variant, one value per seed.
    """

    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    by_condition: dict[tuple[str, str, float | None], Estimate]
    by_seed: dict[str, tuple[float, ...]]

    def matched(self, matching: Matching) -> tuple[Comparison, ...]:
        """Return the comparisons that match in updates, or in compute."""
        return tuple(found for found in self.comparisons if found.matches(matching))

    @property
    def unmatched(self) -> tuple[Comparison, ...]:
        """Return the comparisons that match in neither: their difference does not compare the recipes."""
        return tuple(f for f in self.comparisons if not (f.matches("updates") or f.matches("compute")))

    def compare(self, variant: str, reference: str) -> Comparison | None:
        """Return a comparison, in either order; None if one of the two is missing."""
        for found in self.comparisons:
            if (found.variant, found.reference) == (variant, reference):
                return found
            if (found.variant, found.reference) == (reference, variant):
                return found.turned()
        return None


def compare_accuracy(plan: Plan, measured: Measurements) -> Accuracy:
    """Average over utterances, conditions and seeds, and compare every two variants."""
    hits = Hits(plan, measured)
    rows = tuple(
        Row(
            variant,
            VARIANTS[variant].crops,
            plan.work(variant),
            {column: over_seeds(hits.by_seed(variant, column)) for column in hits.columns},
        )
        for variant in plan.variants
    )
    return Accuracy(
        rows=rows,
        comparisons=tuple(_comparisons(rows, hits)),
        by_condition={
            (variant, kind, snr_db): over_seeds(hits.of(variant, conditions).mean(axis=1))
            for variant in plan.variants
            for (kind, snr_db), conditions in hits.points.items()
        },
        by_seed={variant: tuple(hits.by_seed(variant, MEAN).tolist()) for variant in plan.variants},
    )


class Hits:
    """Correctly identified utterances.

    Attributes:
        columns: conditions that each column of a table averages. points: those of each point of a curve.
    """

    def __init__(self, plan: Plan, measured: Measurements) -> None:
        self._place = {condition: index for index, condition in enumerate(measured.evaluation_set.conditions)}
        self._hits = {
            variant: np.array([_hits(measured, run) for run in plan.runs if run.variant == variant])
            for variant in plan.variants
        }
        by_kind = {
            kind: [c for c in self._place if c.kind == kind] for kind in (CLEAN_KIND, *measured.evaluation_set.kinds)
        }
        self.columns: dict[str, list[Condition]] = {
            MEAN: [condition for condition in self._place if condition.kind != CLEAN_KIND],
            **by_kind,
        }
        self.points = {(c.kind, c.snr_db): [c] for c in self._place}
        self.points |= {(MEAN, snr_db): [c for c in self._place if c.snr_db == snr_db] for snr_db in SNRS_DB}

    def of(self, variant: str, conditions: Sequence[Condition]) -> NDArray[np.float64]:
        """Return for each utterance the share of the conditions in which it was identified, [seeds, utterances]."""
        shares: NDArray[np.float64] = self._hits[variant][:, [self._place[c] for c in conditions]].mean(axis=1)
        return shares

    def by_seed(self, variant: str, column: str) -> NDArray[np.float64]:
        """Return the mean over utterances of a column of the table, [seeds]."""
        means: NDArray[np.float64] = self.of(variant, self.columns[column]).mean(axis=1)
        return means


def _hits(measured: Measurements, run: PlannedRun) -> NDArray[np.float64]:
    """Return 1 where a run identified the speaker, else 0, [condition, utterance]."""
    correct: NDArray[np.float64] = (np.array(measured.accuracy[run].ranks) == 1).astype(np.float64)
    return correct


def _comparisons(rows: Sequence[Row], hits: Hits) -> Iterator[Comparison]:
    drawn = pigeonhole_means(np.stack([hits.of(row.variant, hits.columns[MEAN]) for row in rows], axis=1))
    for first, second in combinations(range(len(rows)), 2):
        variant, reference = rows[second], rows[first]
        top1 = {
            column: over_seeds(hits.by_seed(variant.variant, column) - hits.by_seed(reference.variant, column))
            for column in hits.columns
        }
        yield Comparison(
            variant.variant,
            reference.variant,
            variant.crops / reference.crops,
            variant.work / reference.work,
            top1,
            Estimate(top1[MEAN].mean, *percentile_interval(drawn[second] - drawn[first])),
        )
