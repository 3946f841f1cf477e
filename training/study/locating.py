"""Do the maps pick whom they explain? Whose turn it is where two talk one after the other, over seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.intervals import Estimate, over_seeds
from speakerlens.training.evaluation.maps.attributions import FUSED
from speakerlens.training.evaluation.maps.localisation import MAPS, OTHER_SPEAKER, Localisation
from speakerlens.training.study.measuring import Findings
from speakerlens.training.study.plan import Plan

Areas = Callable[[Localisation, str], tuple[float, ...]]


@dataclass(frozen=True)
class Locating:
    """Areas under the ROC curve of the maps: the target's turns against the interferer's. 1 is perfect, 0.5 is chance.

    Means over utterances, then over seeds. All are empty where nobody else talks.

    Attributes:
        frames: of frames (the map summed over mel), by (variant, map). bins: of single bins, likewise.
        beyond: by variant, frames of the target's fused map minus those of the fused map of another speaker, paired by
            seed: what of it is about whom it explains.
        changes: by (variant, reference, map): frames of the variant minus those of the reference, paired by seed.
    """

    frames: dict[tuple[str, str], Estimate]
    bins: dict[tuple[str, str], Estimate]
    beyond: dict[str, Estimate]
    changes: dict[tuple[str, str, str], Estimate]

    def compare(self, ours: str, theirs: str, map_name: str) -> Estimate | None:
        """Look a change up, either way round; None if one of the two variants is not there."""
        turned = self.changes.get((theirs, ours, map_name))
        return self.changes.get((ours, theirs, map_name)) if turned is None else -turned


def compare_localisation(plan: Plan, findings: Findings) -> Locating:
    """Average the areas of all runs over utterances, then over seeds."""
    if not findings.localisation:
        return Locating({}, {}, {}, {})
    of = {v: [findings.localisation[run][0] for run in plan.runs if run.variant == v] for v in plan.variants}

    def values(areas: Areas) -> dict[tuple[str, str], NDArray[np.float64]]:
        """One value a seed."""
        return {(v, name): np.array([_mean(areas(one, name)) for one in of[v]]) for v in plan.variants for name in MAPS}

    frames = values(lambda one, name: one.frames[name])
    return Locating(
        frames={key: over_seeds(found) for key, found in frames.items()},
        bins={key: over_seeds(found) for key, found in values(lambda one, name: one.bins[name]).items()},
        beyond={v: over_seeds(frames[v, FUSED] - frames[v, OTHER_SPEAKER]) for v in plan.variants},
        changes={
            (ours, theirs, name): over_seeds(frames[ours, name] - frames[theirs, name])
            for theirs, ours in combinations(plan.variants, 2)
            for name in MAPS
        },
    )


def _mean(areas: tuple[float, ...]) -> float:
    """Mean of the utterances that have one."""
    found = np.array(areas)
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else float("nan")
