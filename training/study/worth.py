"""What the maps are worth: faithfulness, randomised weights and the grid, over variants and seeds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from speakerlens.training.evaluation.intervals import Estimate, over_seeds
from speakerlens.training.evaluation.maps.attributions import FUSIONS, METHODS
from speakerlens.training.evaluation.maps.ranking import Ranked, rank, recommend
from speakerlens.training.study.measuring import Findings
from speakerlens.training.study.plan import Plan, PlannedRun


@dataclass(frozen=True)
class Worth:
    """What the maps are worth.

    Attributes:
        utterances: how many the next five are of.
        methods: the compared methods, the most faithful first, over the variants of the first seed.
            fusions: of LayerCAM's stages, likewise. by_variant: of all of them, of each variant alone.
        recommended: stages (0 is S1) whose fusion is the most faithful.
        sanity: rank correlation with the original map by (variant, step, map), mean over utterances, first seed.
        grid_db: how far the grid stands out of the spectrum in decibels, by (stage, tap), over seeds (the variants'
            mean). spread: height of the grid, likewise. used: whether maps are taken there.
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


def judge_maps(plan: Plan, findings: Findings) -> Worth:
    """Put together what was measured of the maps."""
    masked = [row for rows in findings.faithfulness.values() for row in rows]
    spectra = {run: {(row.stage, row.tap): row for row in rows} for run, rows in findings.spectra.items()}
    taps = next(iter(spectra.values()))
    return Worth(
        utterances=len(masked[0].deletion.areas),
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


def _over_variants(plan: Plan, figures: Mapping[PlannedRun, float]) -> Estimate:
    """The variants' mean over seeds, from the figures of all runs."""
    return over_seeds(np.array([_mean(of for run, of in figures.items() if run.seed == seed) for seed in plan.seeds]))


def _mean(values: Iterable[float]) -> float:
    """Mean of those that have a value."""
    found = np.array(list(values), dtype=np.float64)
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else float("nan")
