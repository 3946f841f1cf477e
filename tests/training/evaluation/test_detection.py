"""Thresholds and detection curves against counting."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speakerlens.training.evaluation.metrics import detection_curve, equal_error, threshold_for

SCORES = st.lists(st.integers(-20, 20).map(lambda value: value / 20), min_size=1, max_size=40)


@given(scores=SCORES, rate=st.sampled_from([0.0, 0.05, 0.1, 0.5, 0.9]))
def test_as_many_strangers_as_asked_come_in_and_no_more(scores: list[float], rate: float) -> None:
    def accepted(threshold: float) -> int:
        return sum(score >= threshold for score in scores)

    found = accepted(threshold_for(torch.tensor(scores, dtype=torch.float64), rate))
    allowed = [count for threshold in [*scores, 2.0] if (count := accepted(threshold)) <= rate * len(scores) + 1e-9]
    assert found == max(allowed)


def test_the_threshold_lies_between_the_scores() -> None:
    assert threshold_for(torch.tensor([0.1, 0.2, 0.3, 0.7]), 0.25) == pytest.approx(0.5)
    assert threshold_for(torch.tensor([0.1, 0.2, 0.3, 0.7]), 0.0) == pytest.approx(0.7, abs=1e-6)


@given(known=SCORES, strangers=SCORES)
def test_the_curve_is_what_counting_gives(known: list[float], strangers: list[float]) -> None:
    curve = detection_curve(torch.tensor(known), torch.tensor(strangers))
    # The scores as the function sees them: float32.
    low, high = (np.array(scores, dtype=np.float32).astype(float) for scores in (known, strangers))
    for point in curve:
        assert point.miss == pytest.approx(np.mean(low < point.threshold))
        assert point.false_acceptance == pytest.approx(np.mean(high >= point.threshold))
    assert curve[0].miss == 0.0
    assert (curve[-1].false_acceptance, curve[-1].miss) == (0.0, 1.0)
    assert sorted(curve, key=lambda point: point.threshold) == list(curve)


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    curve = detection_curve(torch.randn(3000, generator=generator) + 1, torch.randn(2000, generator=generator))
    assert len(curve) == 201
    assert (curve[0].false_acceptance, curve[0].miss) == (1.0, 0.0)
    assert (curve[-1].false_acceptance, curve[-1].miss) == (0.0, 1.0)


def test_the_equal_error_is_where_the_errors_balance() -> None:
    generator = torch.Generator().manual_seed(1)
    known, strangers = 2 + torch.randn(3000, generator=generator), torch.randn(5000, generator=generator)
    found = equal_error(known, strangers)
    assert found.miss == pytest.approx(float((known < found.threshold).float().mean()), abs=1e-3)
    assert found.false_acceptance == pytest.approx(float((strangers >= found.threshold).float().mean()), abs=1e-3)
    assert abs(found.miss - found.false_acceptance) < 0.005
    assert found.threshold == pytest.approx(1.0, abs=0.1)  # halfway between two equal bells
    assert found.miss == pytest.approx(0.1587, abs=0.02)  # of the normal distribution beyond one deviation


def test_separable_scores_have_the_threshold_between_them() -> None:
    found = equal_error(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([1.0, 2.0]))
    assert 2.0 < found.threshold <= 5.0
    assert (found.miss, found.false_acceptance) == (0.0, 0.0)
