"""Quality of the saliency maps over variants and seeds: deletion, localisation, faithfulness, randomisation, grid."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.intervals import Estimate, over_seeds
from speakerlens.training.evaluation.maps.attributions import FUSED, FUSIONS, METHODS
from speakerlens.training.evaluation.maps.deletion import MAPS, DeletionIndices
from speakerlens.training.evaluation.maps.localisation import MAPS as LOCALISATION_MAPS
from speakerlens.training.evaluation.maps.localisation import OTHER_SPEAKER, Localisation
from speakerlens.training.evaluation.maps.ranking import Ranked, rank, recommend
from speakerlens.training.study.accuracy import MEAN
from speakerlens.training.study.measurements import Measurements
from speakerlens.training.study.plan import Plan, PlannedRun

_Figure = Literal["index", "clean", "gap"]


@dataclass(frozen=True)
class DeletionResults:
    """Deletion indices of the maps of the true speaker: 1 ignores the interference, lower deletes more.

    All are keyed by (variant, kind, map); the kind "mean" averages all kinds with equal weight, and every kind
    averages its ratios and utterances.

    Attributes:
        kinds: of interference.
        index: over seeds. clean: of the map of the utterance without interference, on the same bins.
        gap: the former minus the latter: the reaction to the interference.
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

    def reaction(self, variant: str, reference: str, kind: str, map_name: str) -> Estimate | None:
        """Return the difference of two variants' reactions, in either order; None if one of the two is missing."""
        turned = self.reactions.get((reference, variant, kind, map_name))
        return self.reactions.get((variant, reference, kind, map_name)) if turned is None else -turned


@dataclass(frozen=True)
class LocalisationResults:
    """Areas under the ROC curve of the maps, target's turns against interferer's: 1 is perfect, 0.5 is chance.

    Means over utterances, then over seeds. All are empty where there is no other talker.

    Attributes:
        frames: of frames (the map summed over mel), by (variant, map). bins: of single bins, likewise.
        beyond: by variant, frames of the target's fused map minus those of the fused map of another speaker, paired by
            seed: the part that is specific to the target.
        changes: by (variant, reference, map): frames of the variant minus those of the reference, paired by seed.
    """

    frames: dict[tuple[str, str], Estimate]
    bins: dict[tuple[str, str], Estimate]
    beyond: dict[str, Estimate]
    changes: dict[tuple[str, str, str], Estimate]

    def change(self, variant: str, reference: str, map_name: str) -> Estimate | None:
        """Return a difference of two variants, in either order; None if one of the two is missing."""
        turned = self.changes.get((reference, variant, map_name))
        return self.changes.get((variant, reference, map_name)) if turned is None else -turned


@dataclass(frozen=True)
class MapQuality:
    """Faithfulness, randomisation and grid of the maps.

    Attributes:
        utterances: number of utterances for faithfulness and randomisation.
        methods: the compared methods, the most faithful first, over the variants of the first seed.
            fusions: of LayerCAM's stages, likewise. by_variant: both, for each variant alone.
        recommended: stages (0 is S1) whose fusion is the most faithful.
        sanity: rank correlation with the original map by (variant, step, map), mean over utterances, first seed.
        grid_db: power of the grid in the spectrum in decibels, by (stage, tap), over seeds (the variants' mean).
            spread: height of the grid, likewise. used: whether maps are taken there.
    """

    utterances: int
    methods: tuple[Ranked, ...]
    fusions: tuple[Ranked, ...]
    by_variant: dict[str, tuple[Ranked, ...]]
    recommended: tuple[int, ...]
    sanity: dict[tuple[str, str, str], float]
    grid_db: dict[tuple[str, str], Estimate]
    spread: dict[tuple[str, str], Estimate]
    used: dict[tuple[str, str], bool]


def compare_deletion(plan: Plan, measured: Measurements) -> DeletionResults:
    """Average the indices of all runs over utterances and ratios, then over seeds."""
    kinds = (MEAN, *measured.evaluation_set.kinds)
    by_variant = {
        variant: [measured.deletion[run] for run in plan.runs if run.variant == variant] for variant in plan.variants
    }

    def values(variant: str, kind: str, map_name: str, figure: _Figure) -> NDArray[np.float64]:
        """Return one value per seed."""
        return np.array([_average(rows, kind, map_name, figure) for rows in by_variant[variant]])

    def over(figure: _Figure) -> dict[tuple[str, str, str], Estimate]:
        keys = [(variant, kind, name) for variant in plan.variants for kind in kinds for name in MAPS]
        return {key: over_seeds(values(*key, figure)) for key in keys}

    def between(figure: _Figure) -> dict[tuple[str, str, str, str], Estimate]:
        return {
            (one, other, kind, name): over_seeds(values(one, kind, name, figure) - values(other, kind, name, figure))
            for other, one in combinations(plan.variants, 2)
            for kind in kinds
            for name in MAPS
        }

    top1 = {
        (variant, kind): over_seeds(np.array([_top1(of_run, kind) for of_run in of_seeds]))
        for variant, of_seeds in by_variant.items()
        for kind in kinds
    }
    return DeletionResults(
        measured.evaluation_set.kinds, over("index"), over("clean"), over("gap"), top1, between("index"), between("gap")
    )


def compare_localisation(plan: Plan, measured: Measurements) -> LocalisationResults:
    """Average the areas of all runs over utterances, then over seeds."""
    if not measured.localisation:
        return LocalisationResults({}, {}, {}, {})
    of = {v: [measured.localisation[run][0] for run in plan.runs if run.variant == v] for v in plan.variants}

    def values(areas: Callable[[Localisation, str], tuple[float, ...]]) -> dict[tuple[str, str], NDArray[np.float64]]:
        """Return one value per seed."""
        keys = [(variant, name) for variant in plan.variants for name in LOCALISATION_MAPS]
        return {(v, name): np.array([finite_mean(areas(run, name)) for run in of[v]]) for v, name in keys}

    frames = values(lambda run, name: run.frames[name])
    return LocalisationResults(
        frames={key: over_seeds(by_seed) for key, by_seed in frames.items()},
        bins={key: over_seeds(by_seed) for key, by_seed in values(lambda run, name: run.bins[name]).items()},
        beyond={v: over_seeds(frames[v, FUSED] - frames[v, OTHER_SPEAKER]) for v in plan.variants},
        changes={
            (one, other, name): over_seeds(frames[one, name] - frames[other, name])
            for other, one in combinations(plan.variants, 2)
            for name in LOCALISATION_MAPS
        },
    )


def compare_maps(plan: Plan, measured: Measurements) -> MapQuality:
    """Rank the methods by faithfulness, and average randomisation and grid."""
    masked = [row for rows in measured.faithfulness.values() for row in rows]
    spectra = {run: {(row.stage, row.tap): row for row in rows} for run, rows in measured.spectra.items()}
    taps = next(iter(spectra.values()))
    return MapQuality(
        utterances=len(masked[0].deletion.areas),
        methods=rank([row for row in masked if row.method in METHODS]),
        fusions=rank([row for row in masked if row.method in FUSIONS]),
        by_variant={run.variant: rank(rows) for run, rows in measured.faithfulness.items()},
        recommended=recommend(masked),
        sanity={
            (run.variant, row.step, row.map): finite_mean(row.rank_correlation)
            for run, rows in measured.randomisation.items()
            for row in rows
        },
        grid_db={tap: _over_variants(plan, {run: rows[tap].grid_db for run, rows in spectra.items()}) for tap in taps},
        spread={tap: _over_variants(plan, {run: rows[tap].spread for run, rows in spectra.items()}) for tap in taps},
        used={tap: row.used for tap, row in taps.items()},
    )


def finite_mean(values: Iterable[float]) -> float:
    """Return the mean of the finite values; NaN if there are none."""
    finite = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    return float(finite.mean()) if len(finite) else math.nan


def _average(rows: Sequence[DeletionIndices], kind: str, map_name: str, figure: _Figure) -> float:
    """Return the mean over the ratios of a kind of the mean over the utterances that have an index."""
    means = []
    for row in _of_kind(rows, kind):
        index, clean = np.array(row.indices[map_name]), np.array(row.clean_indices[map_name])
        means.append(finite_mean({"index": index, "clean": clean, "gap": index - clean}[figure]))
    return float(np.mean(means))


def _top1(rows: Sequence[DeletionIndices], kind: str) -> float:
    return float(np.mean([np.array(row.ranks) == 1 for row in _of_kind(rows, kind)]))


def _of_kind(rows: Sequence[DeletionIndices], kind: str) -> list[DeletionIndices]:
    return [row for row in rows if kind in (MEAN, row.kind)]


def _over_variants(plan: Plan, figures: Mapping[PlannedRun, float]) -> Estimate:
    """Return the variants' mean over seeds, from the figures of all runs."""
    by_seed = [finite_mean(of for run, of in figures.items() if run.seed == seed) for seed in plan.seeds]
    return over_seeds(np.array(by_seed))
