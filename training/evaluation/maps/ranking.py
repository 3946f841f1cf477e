"""Rank methods by faithfulness: deletion and insertion areas averaged over networks and conditions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.evaluation.intervals import Interval, bootstrap_means, percentile_interval
from speakerlens.training.evaluation.maps.attributions import FUSIONS
from speakerlens.training.evaluation.maps.faithfulness import Faithfulness


@dataclass(frozen=True)
class Ranked:
    """Faithfulness of a method, averaged over networks, conditions and cells.

    All intervals are 95 %, by bootstrap over the utterances, paired between methods.

    Attributes:
        method: its name.
        deletion: area under the probability while the most salient bins are deleted: lower is better.
        insertion: while they are inserted: higher is better.
        faithfulness: insertion minus deletion; its interval.
        behind: faithfulness of the best method minus this one's; its interval, which contains 0 where the two are not
            told apart.
    """

    method: str
    deletion: float
    insertion: float
    faithfulness: float
    interval: Interval
    behind: float
    behind_interval: Interval


def rank(results: Sequence[Faithfulness]) -> tuple[Ranked, ...]:
    """Rank the methods, the most faithful first.

    Args:
        results: the same networks, conditions and cells for each method, all of the same utterances.

    Raises:
        ValueError: the methods were measured on different ones, or there are none.
    """
    methods = list(dict.fromkeys(row.method for row in results))
    measured = {m: [(r.network, r.kind, r.snr_db, r.cell) for r in results if r.method == m] for m in methods}
    if not methods or any(found != measured[methods[0]] for found in measured.values()):
        raise ValueError(
            "methods can only be ranked where all were measured on the same networks and in the same conditions"
        )
    deletion = _by_method(methods, [(row.method, row.deletion.areas) for row in results])
    insertion = _by_method(methods, [(row.method, row.insertion.areas) for row in results])
    gained = insertion - deletion
    means, resampled = gained.mean(axis=1), bootstrap_means(gained)
    best = int(means.argmax())
    return tuple(
        Ranked(
            methods[row],
            float(deletion[row].mean()),
            float(insertion[row].mean()),
            float(means[row]),
            percentile_interval(resampled[row]),
            float(means[best] - means[row]),
            percentile_interval(resampled[best] - resampled[row]),
        )
        for row in np.argsort(-means, kind="stable").tolist()
    )


def recommend(results: Sequence[Faithfulness]) -> tuple[int, ...]:
    """Return the stages (0 is S1) of the most faithful fusion; `results` as for `rank`, with some of `FUSIONS`."""
    return FUSIONS[rank([row for row in results if row.method in FUSIONS])[0].method]


def _by_method(methods: Sequence[str], areas: Sequence[tuple[str, tuple[float, ...]]]) -> NDArray[np.float64]:
    """Return the mean area for each utterance, [method, utterance]."""
    means: NDArray[np.float64] = np.array([[of for name, of in areas if name == method] for method in methods]).mean(1)
    return means
