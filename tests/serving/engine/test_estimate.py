"""Estimates of what work takes: bounded, and quick to recover from a pause."""

import pytest

from speakerlens.serving.engine.queue import OUTLIER_RATIO, Estimate


def test_nothing_is_expected_before_a_measurement() -> None:
    estimator = Estimate()
    assert estimator.seconds(7) == 0


def test_a_first_measurement_alone_is_not_believed() -> None:
    estimator = Estimate()
    estimator.record(1, 4.0)
    assert estimator.seconds(1) == 0
    estimator.record(2, 0.2)
    assert estimator.seconds(1) == pytest.approx(0.1)


def test_of_the_first_two_the_faster_by_cost_counts() -> None:
    estimator = Estimate()
    estimator.record(10, 1.0)
    estimator.record(1, 0.5)
    assert estimator.seconds(1) == pytest.approx(0.1)


def test_one_measurement_moves_the_estimate_by_its_weight() -> None:
    """Up or down; one far below the estimate counts more."""
    for seconds, expected in ((2.0, 1.3), (0.5, 0.85), (0.1, 0.55)):
        estimator = Estimate()
        for _ in range(50):
            estimator.record(1, 1.0)
        estimator.record(1, seconds)
        assert estimator.seconds(1) == pytest.approx(expected, abs=0.01)


def test_steady_measurements_give_the_rate_without_deviation() -> None:
    estimator = Estimate()
    for cost in (1, 5, 2, 8):
        estimator.record(cost, 0.5 * cost)
    assert estimator.seconds(3) == pytest.approx(1.5)


def test_one_pause_raises_the_estimate_by_a_bounded_factor() -> None:
    estimator = Estimate()
    for _ in range(5):
        estimator.record(1, 0.1)
    estimator.record(1, 400.0)
    assert estimator.seconds(1) < OUTLIER_RATIO * 0.1


def test_two_pauses_at_the_beginning_are_forgotten_soon() -> None:
    estimator = Estimate()
    estimator.record(1, 4.0)
    estimator.record(1, 4.0)
    for _ in range(6):
        estimator.record(1, 0.01)
    assert estimator.seconds(1) < 0.05


def test_a_device_that_became_slow_is_followed() -> None:
    estimator = Estimate()
    for _ in range(5):
        estimator.record(1, 0.1)
    for _ in range(8):
        estimator.record(1, 1.0)
    assert estimator.seconds(1) == pytest.approx(1.0, rel=0.1)


def test_an_estimate_of_zero_can_rise() -> None:
    estimator = Estimate()
    estimator.record(1, 0.0)
    for _ in range(20):
        estimator.record(1, 0.5)
    assert estimator.seconds(1) == pytest.approx(0.5, rel=0.05)


def test_refusals_lower_the_estimate() -> None:
    estimator = Estimate()
    for seconds in (1.0, 1.0, 2.0):
        estimator.record(1, seconds)
    before = estimator.seconds(1)
    estimator.decay()
    assert estimator.seconds(1) == pytest.approx(0.9 * before)


def test_first_figure_is_used_at_once_and_corrected() -> None:
    estimator = Estimate(2.0, 1.0)
    assert estimator.seconds(4) == pytest.approx(2.0)
    for _ in range(10):
        estimator.record(1, 0.1)
    assert estimator.seconds(1) == pytest.approx(0.1, rel=0.1)


def test_work_without_a_cost_teaches_nothing() -> None:
    estimator = Estimate()
    for _ in range(3):
        estimator.record(0, 1.0)
    assert estimator.seconds(1) == 0
    estimator.record(1, 0.1)
    estimator.record(1, 0.1)
    assert estimator.seconds(1) == pytest.approx(0.1)
