"""What the maps are worth: localisation, faithfulness, randomised weights and the grid, over variants and seeds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from training.maps.attributions import FUSIONS, METHODS
from training.maps.localisation import MAPS as TURN_MAPS
from training.maps.ranking import Ranked, rank, recommend
from training.study.measuring import Findings
from training.study.plan import Plan, PlannedRun
from training.study.statistics import Estimate, over_seeds


@dataclass(frozen=True)
class Worth:
    """What the maps are worth.

    Attributes:
        frames: area under the ROC curve, target's frames against the interferer's, by (variant, map), over seeds.
            bins: of all bins. Both are empty where nobody else talks.
        methods: the compared methods, the most faithful first, over the variants of the first seed.
            fusions: of LayerCAM's stages, likewise. by_variant: of all of them, of each variant alone.
        recommended: stages (0 is S1) whose fusion is the most faithful.
        sanity: rank correlation with the original map by (variant, step, map), mean over utterances, first seed.
        grid_db: how far the grid stands out of the spectrum in decibels, by (stage, tap), over seeds (the variants'
            mean). spread: height of the grid, likewise. used: whether maps are taken there.
    """

    frames: dict[tuple[str, str], Estimate]
    bins: dict[tuple[str, str], Estimate]
    methods: tuple[Ranked, ...]
    fusions: tuple[Ranked, ...]
    by_variant: dict[str, tuple[Ranked, ...]]
    recommended: tuple[int, ...]
    sanity: dict[tuple[str, str, str], float]
    grid_db: dict[tuple[str, str], Estimate]
    spread: dict[tuple[str, str], Estimate]
    used: dict[tuple[str, str], bool]


def judge_maps(plan: Plan, findings: Findings) -> Worth:
    """Put together what was measured of the maps."""
    masked = [row for rows in findings.faithfulness.values() for row in rows]
    turns = {run: rows[0] for run, rows in findings.localisation.items()}
    spectra = {run: {(row.stage, row.tap): row for row in rows} for run, rows in findings.spectra.items()}
    taps = next(iter(spectra.values()))
    return Worth(
        frames={
            (variant, name): _of(variant, {run: _mean(row.frames[name]) for run, row in turns.items()})
            for variant in plan.variants
            for name in TURN_MAPS
            if turns
        },
        bins={
            (variant, name): _of(variant, {run: _mean(row.bins[name]) for run, row in turns.items()})
            for variant in plan.variants
            for name in TURN_MAPS
            if turns
        },
        methods=rank([row for row in masked if row.method in METHODS]),
        fusions=rank([row for row in masked if row.method in FUSIONS]),
        by_variant={run.variant: rank(rows) for run, rows in findings.faithfulness.items()},
        recommended=recommend(masked),
        sanity={
            (run.variant, row.step, row.map): _mean(row.rank_correlation)
            for run, rows in findings.randomisation.items()
            for row in rows
        },
        grid_db={tap: _over_variants(plan, {run: rows[tap].grid_db for run, rows in spectra.items()}) for tap in taps},
        spread={tap: _over_variants(plan, {run: rows[tap].spread for run, rows in spectra.items()}) for tap in taps},
        used={tap: row.used for tap, row in taps.items()},
    )


def _of(variant: str, figures: Mapping[PlannedRun, float]) -> Estimate:
    """A variant's figure over seeds, from those of all runs."""
    return over_seeds(np.array([figure for run, figure in figures.items() if run.variant == variant]))


def _over_variants(plan: Plan, figures: Mapping[PlannedRun, float]) -> Estimate:
    """The variants' mean over seeds, from the figures of all runs."""
    return over_seeds(np.array([_mean(of for run, of in figures.items() if run.seed == seed) for seed in plan.seeds]))


def _mean(values: Iterable[float]) -> float:
    """Mean of those that have a value."""
    found = np.array(list(values), dtype=np.float64)
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else float("nan")
