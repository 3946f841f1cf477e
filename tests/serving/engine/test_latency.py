"""Estimates: what a job takes, and how late queues run; bounded, and quick to recover from a pause."""

import math

import pytest

from speakerlens.serving.engine.latency import (
    CAUTION,
    MAX_OVERRUN,
    OUTLIER_RATIO,
    OVERRUN_HALF_LIFE_SECONDS,
    LatencyEstimator,
    OverrunEstimator,
)


def test_nothing_is_expected_before_a_measurement() -> None:
    estimator = LatencyEstimator()
    assert estimator.seconds(7) == estimator.cautious_seconds(7) == 0
    assert OverrunEstimator().factor(5.0) == 1


def test_a_first_measurement_alone_is_not_believed() -> None:
    estimator = LatencyEstimator()
    estimator.record(1, 4.0)
    assert estimator.cautious_seconds(1) == 0
    estimator.record(2, 0.2)
    assert estimator.seconds(1) == pytest.approx(0.1)


def test_steady_measurements_give_the_rate_without_deviation() -> None:
    estimator = LatencyEstimator()
    for cost in (1, 5, 2, 8):
        estimator.record(cost, 0.5 * cost)
    assert estimator.seconds(3) == pytest.approx(1.5)
    assert estimator.cautious_seconds(3) == pytest.approx(1.5)


def test_caution_grows_with_the_spread() -> None:
    estimator = LatencyEstimator()
    for seconds in (1.0, 1.0, 2.0):
        estimator.record(1, seconds)
    assert estimator.seconds(1) == pytest.approx((0.7 * 1.0 + 2.0) / 1.7)
    assert estimator.cautious_seconds(1) == pytest.approx(estimator.seconds(1) + CAUTION * 0.3)


def test_one_pause_raises_the_estimate_by_a_bounded_factor() -> None:
    estimator = LatencyEstimator()
    for _ in range(5):
        estimator.record(1, 0.1)
    estimator.record(1, 400.0)
    assert estimator.seconds(1) < OUTLIER_RATIO * 0.1
    assert estimator.cautious_seconds(1) < 2 * OUTLIER_RATIO * 0.1


def test_two_pauses_at_the_beginning_are_forgotten_soon() -> None:
    estimator = LatencyEstimator()
    estimator.record(1, 4.0)
    estimator.record(1, 4.0)
    for _ in range(6):
        estimator.record(1, 0.01)
    assert estimator.cautious_seconds(1) < 0.05


def test_a_device_that_became_slow_is_followed() -> None:
    estimator = LatencyEstimator()
    for _ in range(5):
        estimator.record(1, 0.1)
    for _ in range(8):
        estimator.record(1, 1.0)
    assert estimator.seconds(1) == pytest.approx(1.0, rel=0.1)


def test_an_estimate_of_zero_can_rise() -> None:
    estimator = LatencyEstimator()
    estimator.record(1, 0.0)
    for _ in range(20):
        estimator.record(1, 0.5)
    assert estimator.seconds(1) == pytest.approx(0.5, rel=0.05)


def test_refusals_lower_the_estimate() -> None:
    estimator = LatencyEstimator()
    for seconds in (1.0, 1.0, 2.0):
        estimator.record(1, seconds)
    before = estimator.seconds(1), estimator.cautious_seconds(1)
    estimator.decay()
    assert (estimator.seconds(1), estimator.cautious_seconds(1)) == pytest.approx([0.9 * each for each in before])


def test_jobs_in_time_leave_the_factor_at_one() -> None:
    overrun = OverrunEstimator()
    for _ in range(10):
        overrun.record(1.0, 0.2, 0.0)
    assert overrun.factor(0.0) == 1


def test_jobs_twice_as_late_as_expected_are_counted_on() -> None:
    overrun = OverrunEstimator()
    for _ in range(40):
        overrun.record(1.0, 2.0, 0.0)
    assert overrun.factor(0.0) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("seconds", [4.0, 4e9, math.inf])
def test_a_pause_gives_a_bounded_factor_that_fades(seconds: float) -> None:
    overrun = OverrunEstimator()
    for _ in range(100):
        overrun.record(0.01, seconds, 10.0)
    assert overrun.factor(10.0) == MAX_OVERRUN
    assert overrun.factor(10.0 + OVERRUN_HALF_LIFE_SECONDS) == pytest.approx(2.0, abs=0.05)
    assert overrun.factor(10.0 + 8 * OVERRUN_HALF_LIFE_SECONDS) < 1.01


def test_expectations_of_milliseconds_are_no_measure() -> None:
    overrun = OverrunEstimator()
    overrun.record(0.0001, 0.02, 0.0)
    assert overrun.factor(0.0) == 1
