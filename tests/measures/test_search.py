"""Calibration of search against scipy's normal distribution, simulated galleries and plain formulas."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from speakerlens.measures.search import Crossed, Limit, SearchCalibration
from tests.measures.search_section import FALSE_ALARM, GALLERIES, section

CALIBRATION = SearchCalibration.from_section(section())


@pytest.mark.parametrize("gallery", [1, 10, 30, 1000, 100_000])
@pytest.mark.parametrize(("speech_s", "snr_db", "mean"), [(2.0, 25.0, 0.1), (2.0, 10.0, 0.15), (2.0, -8.0, 0.2)])
def test_best_of_independent_impostors_passes_in_its_share(
    gallery: int, speech_s: float, snr_db: float, mean: float
) -> None:
    threshold = CALIBRATION.cosine_threshold(gallery, speech_s, snr_db)
    below = stats.norm.cdf(threshold, mean, 0.1) ** gallery
    assert 1 - below == pytest.approx(FALSE_ALARM, abs=1e-9)


def test_galleries_between_the_entries_keep_the_share_nearly() -> None:
    for gallery in (2, 5, 17, 55, 555, 5555, 1_000_000):
        below = stats.norm.cdf(CALIBRATION.cosine_threshold(gallery, 2.0, 25.0), 0.1, 0.1) ** gallery
        assert 0.04 < 1 - below < 0.06


def test_simulated_impostors_pass_in_their_share() -> None:
    rng = np.random.default_rng(0)
    cosines = rng.normal(0.1 - 0.02 * math.log(0.5), 0.1, size=(4000, 300))
    ratios = CALIBRATION.log_likelihood_ratio(cosines, 1.0, 30.0)
    alarms = int((ratios.max(axis=1) >= CALIBRATION.threshold(300, 1.0, 30.0)).sum())
    assert stats.binomtest(alarms, 4000, FALSE_ALARM).pvalue > 0.01


def test_ratio_is_the_formula() -> None:
    [weak, strong] = CALIBRATION.log_likelihood_ratio(np.array([0.2, 0.8]), 4.0, 5.0, np.array([1, 3]))
    slope = 0.75 * 15 + 0.25 * 25 + 5 * math.log(2)
    offset = -0.75 * 7 - 0.25 * 10 - math.log(2)
    assert weak == pytest.approx(0.2 * slope + offset)
    assert strong == pytest.approx(0.8 * slope + offset - 0.5 * math.log(3))


def test_qualities_outside_the_range_count_as_its_ends() -> None:
    assert CALIBRATION.threshold(10, 0.1, -40.0) == CALIBRATION.threshold(10, 0.5, 0.0)
    assert CALIBRATION.threshold(10, 60.0, 90.0) == CALIBRATION.threshold(10, 4.0, 20.0)
    assert CALIBRATION.threshold(10, 2.0, None) == CALIBRATION.threshold(10, 2.0, 0.0)


@given(first=st.integers(1, 10**7), second=st.integers(1, 10**7), seconds=st.floats(0, 100), snr_db=st.floats(-50, 50))
def test_threshold_never_falls_as_the_gallery_grows(first: int, second: int, seconds: float, snr_db: float) -> None:
    low, high = sorted((first, second))
    assert CALIBRATION.threshold(low, seconds, snr_db) <= CALIBRATION.threshold(high, seconds, snr_db)
    assert CALIBRATION.margin(low) <= CALIBRATION.margin(high)


@given(ratios=st.lists(st.floats(-500, 500), max_size=20), more=st.integers(0, 1000))
def test_probabilities_are_posteriors(ratios: list[float], more: int) -> None:
    gallery = len(ratios) + more
    found = CALIBRATION.probability(ratios, gallery)
    prior = 0.5 / max(gallery, 1)
    scaled = [math.log(prior) + each for each in ratios] + [math.log(0.5)]
    total = np.logaddexp.reduce(scaled)
    assert found == pytest.approx([math.exp(each - total) for each in scaled[:-1]], abs=1e-12)


def test_crossed_limits_are_named_with_values() -> None:
    assert CALIBRATION.reliable(2.0, 10.0, 8000.0) == []
    assert CALIBRATION.reliable(2.0, None, 8000.0) == []
    assert CALIBRATION.reliable(0.3, -7.0, 3400.0) == [
        Crossed(Limit.TOO_LITTLE_SPEECH, 0.3, 0.5),
        Crossed(Limit.TOO_NOISY, -7.0, -5.0),
        Crossed(Limit.TOO_NARROW, 3400.0, 7000.0),
    ]


def test_outlook_is_read() -> None:
    assert [(each.condition, each.miss) for each in CALIBRATION.outlook()] == [
        ("SNR 0 to 10 dB", 0.38),
        ("SNR of 20 dB or more", 0.04),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snr_knots_db": [20.0, 0.0]}, "snr_knots_db must ascend"),
        ({"speech_range_s": [4.0, 0.5]}, "speech_range_s must ascend"),
        ({"slope": [15.0, 25.0, 5.0]}, "slope has 3 values, not 4"),
        ({"slope": [3.0, 25.0, 5.0, 0.0]}, "slope must be positive"),
        ({"slope": [15.0, 25.0, 5.0, -1.0]}, "slope must be positive"),
        ({"spread": [0.1, -0.1, 0.0, 0.0]}, "spread must be positive"),
        ({"maxima": {"galleries": [2, 3], "quantiles": [1.0, 2.0]}}, "must start with 1"),
        ({"maxima": {"galleries": [1, 3], "quantiles": [1.0]}}, "quantiles has 1 values, not 2"),
        ({"maxima": {"galleries": list(GALLERIES), "quantiles": [-float(n) for n in GALLERIES]}}, "must not fall"),
    ],
)
def test_unfit_section_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchCalibration.from_section(section(**changes))
