"""Who names more speakers: accuracy of the variants over seeds, at matched updates and at matched compute."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.conditions import CLEAN_KIND, SNRS_DB, Condition
from speakerlens.training.evaluation.intervals import Estimate, over_seeds, percentile_interval, pigeonhole_means
from speakerlens.training.study.measuring import Findings
from speakerlens.training.study.plan import Plan, PlannedRun
from speakerlens.training.variants import VARIANTS

MEAN = "mean"
"""Over all conditions with interference, each counted the same."""

Matching = Literal["updates", "compute"]

SAME_WORK = 0.95
"""Two variants do the same work if the less does this much of the more: rows are whole numbers, so that the work of two
is hardly ever equal to the last digit."""


@dataclass(frozen=True)
class Row:
    """Top-1 accuracy of a variant, shares in [0, 1].

    Attributes:
        variant: its name.
        crops: drawn for an update, in batch sizes. work: of the network in it, likewise (`Plan.work`).
        top1: by column: "mean", "clean" and each kind of interference (mean over its ratios).
    """

    variant: str
    crops: float
    work: float
    top1: dict[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Top-1 of `variant` minus that of `reference`, same seeds, same mixtures.

    Attributes:
        variant, reference: names.
        crops, work: of the variant over that of the reference, as in `Row`.
        top1: by column, as in `Row`; intervals by Student's t over the seeds' differences.
        resampled: of the column "mean", the interval by bootstrap over seeds and utterances.
    """

    variant: str
    reference: str
    crops: float
    work: float
    top1: dict[str, Estimate]
    resampled: Estimate

    def matches(self, matching: Matching) -> bool:
        """Whether the two match: "updates": as many crops drawn in as many steps; "compute": the same work."""
        if matching == "updates":
            return self.crops == 1
        return min(self.work, 1 / self.work) >= SAME_WORK

    def turned(self) -> "Comparison":
        """The same the other way round."""
        top1 = {column: -estimate for column, estimate in self.top1.items()}
        return Comparison(self.reference, self.variant, 1 / self.crops, 1 / self.work, top1, -self.resampled)


@dataclass(frozen=True)
class Accuracy:
    """Everything the study knows about accuracy.

    Attributes:
        rows: of every variant. comparisons: of every two of them, whether they match in something or not.
        cells: top-1 by (variant, kind, ratio in dB), "clean" with None; the kind "mean" averages all others.
        by_seed: mean under interference by variant, a value a seed.
    """

    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    cells: dict[tuple[str, str, float | None], Estimate]
    by_seed: dict[str, tuple[float, ...]]

    def matched(self, matching: Matching) -> tuple[Comparison, ...]:
        """Comparisons of those that match in one thing."""
        return tuple(found for found in self.comparisons if found.matches(matching))

    @property
    def unmatched(self) -> tuple[Comparison, ...]:
        """Comparisons of those that match in nothing, so that their difference says nothing of their recipes."""
        return tuple(f for f in self.comparisons if not (f.matches("updates") or f.matches("compute")))

    def compare(self, variant: str, reference: str) -> Comparison | None:
        """Look a comparison up, either way round; None if one of the two is not there."""
        for found in self.comparisons:
            if (found.variant, found.reference) == (variant, reference):
                return found
            if (found.variant, found.reference) == (reference, variant):
                return found.turned()
        return None


def compare_accuracy(plan: Plan, findings: Findings) -> Accuracy:
    """Average over utterances, conditions and seeds, and compare every two variants."""
    hits = Hits(plan, findings)
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
        cells={
            (variant, kind, snr_db): over_seeds(hits.of(variant, conditions).mean(axis=1))
            for variant in plan.variants
            for (kind, snr_db), conditions in hits.cells.items()
        },
        by_seed={variant: tuple(hits.by_seed(variant, MEAN).tolist()) for variant in plan.variants},
    )


class Hits:
    """Which utterances were named rightly.

    Attributes:
        columns: conditions that each column of a table averages. cells: those of each point of a curve.
    """

    def __init__(self, plan: Plan, findings: Findings) -> None:
        self._place = {condition: index for index, condition in enumerate(findings.setting.conditions)}
        self._hits = {
            variant: np.array([_hits(findings, run) for run in plan.runs if run.variant == variant])
            for variant in plan.variants
        }
        by_kind = {kind: [c for c in self._place if c.kind == kind] for kind in (CLEAN_KIND, *findings.setting.kinds)}
        self.columns: dict[str, list[Condition]] = {
            MEAN: [condition for condition in self._place if condition.kind != CLEAN_KIND],
            **by_kind,
        }
        self.cells = {(c.kind, c.snr_db): [c] for c in self._place}
        self.cells |= {(MEAN, snr_db): [c for c in self._place if c.snr_db == snr_db] for snr_db in SNRS_DB}

    def of(self, variant: str, conditions: Sequence[Condition]) -> NDArray[np.float64]:
        """Share of some conditions in which each utterance was named rightly, [seeds, utterances]."""
        shares: NDArray[np.float64] = self._hits[variant][:, [self._place[c] for c in conditions]].mean(axis=1)
        return shares

    def by_seed(self, variant: str, column: str) -> NDArray[np.float64]:
        """Mean over utterances of a column of the table, [seeds]."""
        means: NDArray[np.float64] = self.of(variant, self.columns[column]).mean(axis=1)
        return means


def _hits(findings: Findings, run: PlannedRun) -> NDArray[np.float64]:
    right: NDArray[np.float64] = (np.array(findings.accuracy[run].ranks) == 1).astype(np.float64)
    return right


def _comparisons(rows: Sequence[Row], hits: Hits) -> Iterator[Comparison]:
    drawn = pigeonhole_means(np.stack([hits.of(row.variant, hits.columns[MEAN]) for row in rows], axis=1))
    for first, second in combinations(range(len(rows)), 2):
        ours, theirs = rows[second], rows[first]
        top1 = {
            column: over_seeds(hits.by_seed(ours.variant, column) - hits.by_seed(theirs.variant, column))
            for column in hits.columns
        }
        yield Comparison(
            ours.variant,
            theirs.variant,
            ours.crops / theirs.crops,
            ours.work / theirs.work,
            top1,
            Estimate(top1[MEAN].mean, *percentile_interval(drawn[second] - drawn[first])),
        )
