"""Who names more speakers: accuracy of the variants over seeds, at matched updates and at matched compute."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.conditions import CLEAN_KIND, SNRS_DB, Condition
from training.objectives import VARIANTS
from training.study.measuring import Findings
from training.study.plan import Plan, PlannedRun
from training.study.statistics import Estimate, over_resamples, over_seeds, resample

MEAN = "mean"
"""Over all conditions with interference, each counted the same."""

Matching = Literal["updates", "compute"]

_SAME_WORK = 0.95
"""Of the most network work of any variant: rows are whole numbers, so that the work of two variants is never equal to
the last digit."""


@dataclass(frozen=True)
class Row:
    """Top-1 accuracy of a variant, shares in [0, 1].

    Attributes:
        variant: its name.
        top1: by column: "mean", "clean" and each kind of interference (mean over its ratios).
    """

    variant: str
    top1: dict[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Top-1 of `variant` minus that of `reference`, same seeds, same mixtures.

    Attributes:
        variant, reference: names.
        top1: by column, as in `Row`; intervals by Student's t over the seeds' differences.
        resampled: of the column "mean", the interval by bootstrap over seeds and utterances.
    """

    variant: str
    reference: str
    top1: dict[str, Estimate]
    resampled: Estimate


@dataclass(frozen=True)
class Table:
    """Variants that match in one thing.

    Attributes:
        matching: "updates": the same number of crops drawn and of steps; "compute": the same work of the network.
        rows: by variant; comparisons: of every two of them.
    """

    matching: Matching
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]

    def compare(self, variant: str, reference: str) -> Comparison | None:
        """Look a comparison up, either way round; None if one of the two is not in the table."""
        for found in self.comparisons:
            if (found.variant, found.reference) == (variant, reference):
                return found
            if (found.variant, found.reference) == (reference, variant):
                turned = {column: -estimate for column, estimate in found.top1.items()}
                return Comparison(variant, reference, turned, -found.resampled)
        return None


@dataclass(frozen=True)
class Accuracy:
    """Everything the study knows about accuracy.

    Attributes:
        tables: by matching; one that would hold a single variant is left out.
        cells: top-1 by (variant, kind, ratio in dB), "clean" with None; the kind "mean" averages all others.
        by_seed: mean under interference by variant, a value a seed.
    """

    tables: tuple[Table, ...]
    cells: dict[tuple[str, str, float | None], Estimate]
    by_seed: dict[str, tuple[float, ...]]

    def table(self, matching: Matching) -> Table | None:
        """Look a table up."""
        return next((table for table in self.tables if table.matching == matching), None)


def compare_accuracy(plan: Plan, findings: Findings) -> Accuracy:
    """Put the tables together."""
    hits = Hits(plan, findings)
    work = {variant: plan.work(variant) for variant in plan.variants}
    matched: dict[Matching, list[str]] = {
        "updates": [variant for variant in plan.variants if VARIANTS[variant].crops == 1],
        "compute": [variant for variant in plan.variants if work[variant] > _SAME_WORK * max(work.values())],
    }
    return Accuracy(
        tables=tuple(_table(name, variants, hits) for name, variants in matched.items() if len(variants) > 1),
        cells={
            (variant, kind, snr_db): over_seeds(hits.of(variant, conditions).mean(axis=1))
            for variant in plan.variants
            for (kind, snr_db), conditions in hits.cells.items()
        },
        by_seed={
            variant: tuple(hits.of(variant, hits.columns[MEAN]).mean(axis=1).tolist()) for variant in plan.variants
        },
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


def _hits(findings: Findings, run: PlannedRun) -> NDArray[np.float64]:
    right: NDArray[np.float64] = (np.array(findings.accuracy[run].ranks) == 1).astype(np.float64)
    return right


def _table(matching: Matching, variants: Sequence[str], hits: Hits) -> Table:
    def by_seed(variant: str, column: str) -> NDArray[np.float64]:
        means: NDArray[np.float64] = hits.of(variant, hits.columns[column]).mean(axis=1)
        return means

    rows = [Row(v, {column: over_seeds(by_seed(v, column)) for column in hits.columns}) for v in variants]
    drawn = resample(np.stack([hits.of(variant, hits.columns[MEAN]) for variant in variants], axis=1))
    comparisons = []
    for first, second in combinations(range(len(variants)), 2):
        ours, theirs = variants[second], variants[first]
        top1 = {column: over_seeds(by_seed(ours, column) - by_seed(theirs, column)) for column in hits.columns}
        comparisons.append(
            Comparison(ours, theirs, top1, over_resamples(top1[MEAN].mean, drawn[second] - drawn[first]))
        )
    return Table(matching, tuple(rows), tuple(comparisons))
