"""Scores, intervals and files against values worked out elsewhere."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from speakerlens.training.evaluation.accuracy import score_all, summarise
from speakerlens.training.evaluation.comparison.results import Evaluation, average_deletion, write_json
from speakerlens.training.evaluation.conditions import CLEAN, Condition
from speakerlens.training.evaluation.intervals import wilson

CONDITIONS = (CLEAN, Condition("noise", 5.0), Condition("noise", 0.0), Condition("reverb", 5.0))
# Two variants, four conditions, three utterances.
RANKS = np.array(
    [
        [[1, 1, 1], [1, 2, 1], [6, 5, 3], [1, 1, 4]],
        [[1, 1, 2], [1, 1, 1], [1, 7, 5], [1, 1, 1]],
    ]
)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilson_matches_newcombe_1998(hits: int, trials: int, low: float, high: float) -> None:
    assert wilson(hits, trials) == pytest.approx((low, high), abs=5e-5)


def test_scores_count_the_first_and_the_first_five() -> None:
    scores = {(s.variant, s.interference, s.snr_db): s for s in score_all(("a", "b"), CONDITIONS, RANKS)}
    assert len(scores) == 8
    assert (scores["a", "clean", None].top1, scores["a", "clean", None].top5) == (1.0, 1.0)
    assert scores["a", "noise", 5.0].top1 == pytest.approx(2 / 3)
    assert scores["a", "noise", 0.0].top1 == 0.0
    assert scores["a", "noise", 0.0].top5 == pytest.approx(2 / 3)
    assert scores["b", "noise", 0.0].top5 == pytest.approx(2 / 3)
    assert scores["b", "noise", 0.0].utterances == 3


def test_means_weight_conditions_equally_without_clean() -> None:
    (a, b), (difference,) = summarise(("a", "b"), CONDITIONS, RANKS)
    assert [a.clean, b.clean] == pytest.approx([1, 2 / 3])
    assert a.kinds == {"noise": pytest.approx(1 / 3), "reverb": pytest.approx(2 / 3)}
    assert a.mean == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    assert b.mean == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert (difference.variant, difference.reference) == ("b", "a")
    assert difference.mean == pytest.approx(b.mean - a.mean)
    assert a.mean_interval[0] <= a.mean <= a.mean_interval[1]


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    ranks = rng.integers(1, 3, size=(1, 4, 200))
    ranks = np.concatenate([ranks, ranks])
    summaries, (difference,) = summarise(("a", "same"), CONDITIONS, ranks)
    assert difference.interval == (0.0, 0.0)
    low, high = summaries[0].mean_interval
    # The spread of a mean over 200 utterances, by the central limit theorem.
    spread = (ranks[0, 1:] == 1).mean(axis=0).std(ddof=1) / math.sqrt(200)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_deletion_leaves_out_utterances_without_an_index() -> None:
    row = average_deletion("a", Condition("noise", 0.0), "s1", np.array([0.2, np.nan, 0.4, 0.6]), np.full(4, 0.5))
    assert row.index == pytest.approx(0.4)
    assert row.utterances == 3
    half = 1.96 * 0.2 / math.sqrt(3)
    assert row.interval == pytest.approx((0.4 - half, 0.4 + half), abs=1e-4)
    nothing = average_deletion("a", Condition("noise", 0.0), "s1", np.array([np.nan]), np.array([0.5]))
    assert math.isnan(nothing.index)
    assert nothing.utterances == 0


def test_json_has_null_for_nan(tmp_path: Path) -> None:
    row = average_deletion("a", Condition("noise", 0.0), "s1", np.array([np.nan]), np.array([0.5]))
    write_json(Evaluation({}, ("a",), ("noise",), (0.0,), {}, (), (), (), {}, (row,)), tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert json.loads(text)["deletion"][0]["index"] is None
