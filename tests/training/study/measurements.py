"""Plans and hand-made measurements, whose averages are known."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.conditions import CLEAN, SNRS_DB, Condition
from speakerlens.training.evaluation.maps.deletion import MAPS, DeletionIndices
from speakerlens.training.evaluation.maps.localisation import MAPS as TURN_MAPS
from speakerlens.training.evaluation.maps.localisation import Localisation
from speakerlens.training.study.measurements import EvaluationSet, Measurements, Ranks
from speakerlens.training.study.plan import Plan, PlannedRun, make_plan
from tests.training.toy import make_corpus, toy_config

KINDS = ("noise", "music")
UTTERANCES = 10


def plan_of(folder: Path, *variants: str, seeds: int = 3, overrides: tuple[str, ...] = ()) -> Plan:
    corpus = make_corpus(folder / "corpus", seconds=0.2, interference=False)
    return make_plan(toy_config(folder, *overrides), corpus, folder / "out", variants, seeds)


def measurements_of(
    plan: Plan,
    right: Callable[[PlannedRun], int] = lambda run: 5,
    deletion: Callable[[PlannedRun, str, str], tuple[float, float]] = lambda run, kind, name: (1.0, 1.0),
    turns: Callable[[PlannedRun, str], float] = lambda run, name: 0.5,
) -> Measurements:
    """Return measurements.

    Args:
        plan: whose runs they are of.
        right: how many of ten utterances a run identifies in every condition with interference; all in the clean one.
        deletion: index of a run's map under a kind, and that of the clean utterance's map.
        turns: area under the ROC curve of a run's map by frames; by bins it is 0.1 less.
    """
    corrupted = tuple(Condition(kind, snr_db) for kind in KINDS for snr_db in SNRS_DB)
    names = tuple(f"{number}.flac" for number in range(UTTERANCES))
    tested = EvaluationSet((CLEAN, *corrupted), {}, KINDS, names, names)
    return Measurements(
        tested,
        accuracy={run: _ranks(right(run), len(corrupted)) for run in plan.runs},
        deletion={run: tuple(_indices(run, condition, deletion) for condition in tested.probed) for run in plan.runs},
        localisation={run: (_located(run, {name: turns(run, name) for name in TURN_MAPS}),) for run in plan.runs},
        faithfulness={},
        listening={},
        randomisation={},
        spectra={},
        calibration={},
        code_revisions={},
    )


def _ranks(right: int, conditions: int) -> Ranks:
    named: NDArray[np.int64] = np.where(np.arange(UTTERANCES) < right, 1, 2)
    return Ranks(((1,) * UTTERANCES, *((tuple(named.tolist()),) * conditions)))


def _indices(
    run: PlannedRun, condition: Condition, deletion: Callable[[PlannedRun, str, str], tuple[float, float]]
) -> DeletionIndices:
    both = {name: deletion(run, condition.kind, name) for name in MAPS}
    indices, clean = ({name: (of[which],) * UTTERANCES for name, of in both.items()} for which in (0, 1))
    return DeletionIndices(
        run.variant, condition.kind, condition.snr_db, (1,) * UTTERANCES, (0.5,) * UTTERANCES, indices, clean
    )


def _located(run: PlannedRun, areas: Mapping[str, float]) -> Localisation:
    frames, bins = ({name: (area - less,) * UTTERANCES for name, area in areas.items()} for less in (0.0, 0.1))
    return Localisation(run.variant, (1,) * UTTERANCES, 1.25, frames, bins)
