"""Trials of search: queries against the best of some exemplars of each speaker.

A query is never compared with an exemplar of its own recording, nor with a speaker who may be the other voice in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.search import SearchCalibration
from speakerlens.training.evaluation.queries import Queries

EXEMPLARS = (1, 2, 3)
TALKED_OVER = ("babble", "speaker")
"""Kinds of interference with other voices, of out-of-set speakers where the split has them."""

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trials:
    """Queries against the best of each set of exemplars; rows are queries [n], columns are sets [m].

    Attributes:
        cosines: float64 [n, m]; NaN where a set holds the query's own recording.
        same: whether speaker and query agree, bool [n, m].
        speakers: of the sets, [m]; sizes: exemplars in each, int64 [m].
    """

    cosines: Array
    same: NDArray[np.bool_]
    speakers: NDArray[np.str_]
    sizes: NDArray[np.int64]


def exemplars_of(queries: Queries) -> Queries:
    """Return the longest clean piece of each recording, in the order of the recordings."""
    order = np.lexsort((-queries.seconds, queries.kinds != "clean", queries.recordings))
    return queries.select(order[np.unique(queries.recordings[order], return_index=True)[1]])


def compare(queries: Queries, exemplars: Queries, sizes: Sequence[int] = EXEMPLARS) -> Trials:
    """Compare queries with the best of each `sizes` successive exemplars of a speaker; a size may have none."""
    cosines = queries.directions @ exemplars.directions.T
    cosines[queries.recordings[:, None] == exemplars.recordings] = np.nan
    columns, speakers, counts = [], [], []
    for speaker in np.unique(exemplars.speakers):
        own = np.flatnonzero(exemplars.speakers == speaker)
        for size in sizes:
            for start in range(0, len(own) - size + 1, size):
                columns.append(cosines[:, own[start : start + size]].max(axis=1))
                speakers.append(speaker)
                counts.append(size)
    names = np.array(speakers)
    return Trials(np.stack(columns, axis=1), queries.speakers[:, None] == names, names, np.array(counts))


def without_talkers(trials: Trials, queries: Queries, out_of_set: Sequence[str]) -> Trials:
    """Leave out where another voice in the query may be the speaker compared: talkers are out-of-set speakers."""
    talked_over = np.isin(queries.kinds, TALKED_OVER)[:, None] & np.isin(trials.speakers, out_of_set) & ~trials.same
    return replace(trials, cosines=np.where(talked_over, np.nan, trials.cosines))


class Tested(NamedTuple):
    """Genuine queries against one exemplar of each speaker, log-likelihood ratios float64 [n].

    Attributes:
        rows: of the queries, int64 [n].
        own: of the own speaker; rivals: of the best other one; seconds: of the second other one.
        thresholds: for a gallery of all of them; speakers: how many these are, int64 [n].
    """

    rows: NDArray[np.int64]
    own: Array
    rivals: Array
    seconds: Array
    thresholds: Array
    speakers: NDArray[np.int64]


def tested_queries(
    calibration: SearchCalibration, queries: Queries, trials: Trials, gallery: int | None = None
) -> Tested:
    """Test each query that has an exemplar of its speaker from another recording, and two other speakers to compare.

    With a `gallery`, so many speakers are compared at most, drawn for each query.
    """
    names = np.unique(trials.speakers)
    chosen = np.full((len(queries), len(names)), np.nan)
    # The exemplar is a speaker's first that is not of the query's recording.
    for column in np.flatnonzero(trials.sizes == 1)[::-1]:
        place = int(np.searchsorted(names, trials.speakers[column]))
        cosines = trials.cosines[:, column]
        chosen[:, place] = np.where(np.isnan(cosines), chosen[:, place], cosines)
    ratios = calibration.log_likelihood_ratio(chosen, queries.speech_s[:, None], queries.estimated_db[:, None])
    mine = queries.speakers[:, None] == names
    if gallery is not None:
        order = np.where(mine, -1.0, np.random.default_rng(0).random(mine.shape) + np.isnan(ratios))
        ratios[np.argsort(np.argsort(order, axis=1), axis=1) >= gallery] = np.nan
    others = np.sort(np.where(mine | np.isnan(ratios), -np.inf, ratios), axis=1)
    own = np.where(mine, np.nan_to_num(ratios, nan=-np.inf), -np.inf).max(axis=1)
    rows = np.flatnonzero(np.isfinite(own) & np.isfinite(others[:, -2]))
    sizes = np.isfinite(ratios[rows]).sum(axis=1)
    thresholds = [
        calibration.threshold(int(size), queries.speech_s[row], queries.estimated_db[row])
        for row, size in zip(rows, sizes, strict=True)
    ]
    return Tested(rows, own[rows], others[rows, -1], others[rows, -2], np.array(thresholds), sizes)
