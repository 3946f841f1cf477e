"""The decision of a search against the calibration, written out for every speaker of a gallery."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speakerlens.measures.evidence import Evidence
from speakerlens.measures.search import SearchCalibration
from speakerlens.serving.gallery.matrix import Matches
from speakerlens.serving.pipeline.decision import Decision, ReasonCode, decide, ranked
from tests.measures.search_section import section

CALIBRATION = SearchCalibration.from_section(section())
GOOD = Evidence(2.0, 20.0, 8000.0, 0.0, -26.0)


def matches_of(cosines: list[float], exemplars: list[int] | None = None) -> Matches:
    counts = np.ones(len(cosines), np.intp) if exemplars is None else np.array(exemplars, np.intp)
    return Matches(np.arange(len(cosines), dtype=np.intp), np.array(cosines, np.float32), counts)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 50)), min_size=1, max_size=30),
    st.floats(0, 5),
    st.one_of(st.none(), st.floats(-10, 30)),
    st.integers(2, 8),
)
def test_ranking_is_the_calibration_of_every_speaker(
    found: list[tuple[float, int]], speech_s: float, snr_db: float | None, most: int
) -> None:
    cosines, exemplars = (list(each) for each in zip(*found, strict=True))
    matches, evidence = matches_of(cosines, exemplars), Evidence(speech_s, snr_db, 8000.0, 0.0, None)
    ranking = ranked(matches, evidence, CALIBRATION, most)
    ratios = CALIBRATION.log_likelihood_ratio(matches.cosines, speech_s, snr_db, np.array(exemplars))
    np.testing.assert_allclose(ranking.ratios, ratios, rtol=1e-4, atol=1e-4)
    assert len(ranking.order) == min(most, len(cosines))
    best = ranking.ratios[ranking.order]
    assert (np.diff(best) <= 0).all()
    assert best[0] == ranking.ratios.max()
    expected = CALIBRATION.probability(ratios, len(ratios))[ranking.order]
    np.testing.assert_allclose(ranking.probabilities, expected, rtol=1e-3, atol=1e-6)
    plain = ranked(matches, evidence, None, most)
    assert plain.scores[plain.order[0]] == matches.cosines.max()
    assert not plain.probabilities.any()


@pytest.mark.parametrize(
    ("cosines", "evidence", "speech", "decision", "codes"),
    [
        ([0.9, 0.1], GOOD, True, Decision.SPEAKER, []),
        ([0.9], GOOD, True, Decision.SPEAKER, []),
        ([0.1, 0.0], GOOD, True, Decision.UNKNOWN, ["BELOW_THRESHOLD"]),
        ([0.9, 0.89], GOOD, True, Decision.AMBIGUOUS, ["MARGIN"]),
        ([0.9, 0.1], Evidence(0.1, 20.0, 8000.0, 0.0, None), True, Decision.UNRELIABLE, ["TOO_LITTLE_SPEECH"]),
        ([0.9, 0.1], Evidence(2.0, -9.0, 8000.0, 0.0, None), True, Decision.UNRELIABLE, ["TOO_NOISY"]),
        ([0.9, 0.89], Evidence(2.0, 9.0, 4000.0, 0.0, None), True, Decision.UNRELIABLE, ["TOO_NARROW", "MARGIN"]),
        ([0.9, 0.1], Evidence(0.0, None, 0.0, 0.0, None), False, Decision.UNRELIABLE, ["NO_SPEECH"]),
        ([], GOOD, True, Decision.UNKNOWN, ["EMPTY_GALLERY"]),
        ([], GOOD, False, Decision.UNKNOWN, ["EMPTY_GALLERY", "NO_SPEECH"]),
    ],
)
def test_decision_has_its_reasons(
    cosines: list[float], evidence: Evidence, speech: bool, decision: Decision, codes: list[str]
) -> None:
    matches = matches_of(cosines)
    verdict = decide(ranked(matches, evidence, CALIBRATION, 5), matches, evidence, speech, CALIBRATION)
    assert (verdict.decision, [each.code.value for each in verdict.reasons]) == (decision, codes)
    for reason in verdict.reasons:
        assert reason.text
        assert reason.value < reason.limit or reason.limit == 0


def test_threshold_rises_with_the_gallery() -> None:
    """The best of a thousand impostors is closer than the best of two."""
    found = []
    for size in (2, 1000):
        matches = matches_of([0.35, *[0.0] * (size - 1)])
        found.append(decide(ranked(matches, GOOD, CALIBRATION, 5), matches, GOOD, True, CALIBRATION))
    assert [each.decision for each in found] == [Decision.SPEAKER, Decision.UNKNOWN]
    assert found[0].threshold < found[1].threshold


def test_without_calibration_no_speaker_is_named() -> None:
    matches = matches_of([0.99, 0.1])
    ranking = ranked(matches, GOOD, None, 5)
    verdict = decide(ranking, matches, GOOD, True, None)
    assert (verdict.decision, verdict.reasons[0].code) == (Decision.UNRELIABLE, ReasonCode.UNCALIBRATED)
    assert ranking.margin == pytest.approx(0.89, abs=1e-6)
