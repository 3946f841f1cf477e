"""Do augmented networks learn to delete? Deletion indices over seeds, with the accuracy on the same mixtures beside."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.intervals import Estimate, over_seeds
from speakerlens.training.evaluation.maps.deletion import MAPS, DeletionIndices
from speakerlens.training.study.accuracy import MEAN
from speakerlens.training.study.measuring import Findings
from speakerlens.training.study.plan import Plan

Which = Literal["index", "clean", "gap"]


@dataclass(frozen=True)
class Deleting:
    """Deletion indices of the maps of the true speaker: 1 is blind to the interference, lower deletes more.

    All are keyed by (variant, kind, map); the kind "mean" averages all kinds, each counted the same, and every kind
    averages its ratios and utterances.

    Attributes:
        kinds: of interference.
        index: over seeds. clean: of the map of the utterance without interference, on the same bins.
        gap: the former minus the latter: what is deleted beyond where a map of clean speech would not look anyway.
        top1: by (variant, kind), on the same mixtures.
        changes: by (variant, reference, kind, map): index of the variant minus that of the reference, paired by seed.
        reactions: the same of the gap.
    """

    kinds: tuple[str, ...]
    index: dict[tuple[str, str, str], Estimate]
    clean: dict[tuple[str, str, str], Estimate]
    gap: dict[tuple[str, str, str], Estimate]
    top1: dict[tuple[str, str], Estimate]
    changes: dict[tuple[str, str, str, str], Estimate]
    reactions: dict[tuple[str, str, str, str], Estimate]

    def compare(self, ours: str, theirs: str, kind: str, map_name: str) -> tuple[Estimate, Estimate] | None:
        """Look up a change and a reaction, either way round; None if one of the two variants is not there."""
        key, turned = (ours, theirs, kind, map_name), (theirs, ours, kind, map_name)
        if turned in self.changes:
            return -self.changes[turned], -self.reactions[turned]
        return (self.changes[key], self.reactions[key]) if key in self.changes else None


def compare_deletion(plan: Plan, findings: Findings) -> Deleting:
    """Average the indices of all runs over utterances and ratios, then over seeds."""
    kinds = (MEAN, *findings.setting.kinds)
    by_variant = {
        variant: [findings.deletion[run] for run in plan.runs if run.variant == variant] for variant in plan.variants
    }

    def values(variant: str, kind: str, map_name: str, which: Which) -> NDArray[np.float64]:
        """One value a seed."""
        return np.array([_average(found, kind, map_name, which) for found in by_variant[variant]])

    def over(which: Which) -> dict[tuple[str, str, str], Estimate]:
        keys = [(variant, kind, name) for variant in plan.variants for kind in kinds for name in MAPS]
        return {key: over_seeds(values(*key, which)) for key in keys}

    def between(which: Which) -> dict[tuple[str, str, str, str], Estimate]:
        return {
            (ours, theirs, kind, name): over_seeds(values(ours, kind, name, which) - values(theirs, kind, name, which))
            for theirs, ours in combinations(plan.variants, 2)
            for kind in kinds
            for name in MAPS
        }

    top1 = {
        (variant, kind): over_seeds(np.array([_top1(of_run, kind) for of_run in of_seeds]))
        for variant, of_seeds in by_variant.items()
        for kind in kinds
    }
    return Deleting(
        findings.setting.kinds, over("index"), over("clean"), over("gap"), top1, between("index"), between("gap")
    )


def _average(found: Sequence[DeletionIndices], kind: str, map_name: str, which: Which) -> float:
    """Mean over the ratios of a kind of the mean over utterances; utterances without an index are left out."""
    means = []
    for row in _of_kind(found, kind):
        index, clean = np.array(row.indices[map_name]), np.array(row.clean_indices[map_name])
        values = {"index": index, "clean": clean, "gap": index - clean}[which]
        values = values[np.isfinite(values)]
        means.append(values.mean() if len(values) else np.nan)
    return float(np.mean(means))


def _top1(found: Sequence[DeletionIndices], kind: str) -> float:
    return float(np.mean([np.array(row.ranks) == 1 for row in _of_kind(found, kind)]))


def _of_kind(found: Sequence[DeletionIndices], kind: str) -> list[DeletionIndices]:
    return [row for row in found if kind in (MEAN, row.kind)]
