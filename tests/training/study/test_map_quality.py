"""Deletion indices, reactions and localisation over seeds."""

from pathlib import Path

import pytest

from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.evaluation.maps.attributions import FUSED
from speakerlens.training.evaluation.maps.localisation import OTHER_SPEAKER
from speakerlens.training.study.accuracy import MEAN
from speakerlens.training.study.map_quality import compare_deletion, compare_localisation
from speakerlens.training.study.plan import Plan, PlannedRun
from tests.training.study.measurements import measurements_of, plan_of

# Index, and that of the clean utterance's map: `da` lies less on the interference than `clean`, but no less than its
# map of clean speech does, so it deletes less.
BOTH = {"clean": (0.9, 1.0), "da": (0.8, 0.85)}
PLACES = {"noise": 0.0, "music": 0.02}


def deletion(run: PlannedRun, kind: str, name: str) -> tuple[float, float]:
    index, clean = BOTH[run.variant]
    wobble = 0.001 * run.seed * (1 if run.variant == "da" else 2)
    return index + PLACES[kind] + wobble, clean - PLACES[kind]


def turns(run: PlannedRun, name: str) -> float:
    area = {FUSED: 0.7, OTHER_SPEAKER: 0.6}.get(name, 0.5) + (0.05 if run.variant == "da" else 0.0)
    return area + 0.01 * run.seed * (name == FUSED)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path, "clean", "da")


def mean(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.mean


def test_reaction_difference_is_that_of_the_gaps(plan: Plan) -> None:
    """Seeds 3, 4 and 5; the kinds' shifts cancel out of the differences."""
    found = compare_deletion(plan, measurements_of(plan, deletion=deletion))
    assert found.index["clean", "music", "s4"].mean == pytest.approx(0.9 + 0.02 + 0.008)
    assert found.clean["clean", "music", "s4"].mean == pytest.approx(0.98)
    assert found.gap["clean", "music", "s4"].mean == pytest.approx(-0.06 + 0.008)
    assert found.gap["da", MEAN, "s4"].mean == pytest.approx(-0.05 + 0.02 + 0.004)
    assert found.changes["da", "clean", "music", "s4"].mean == pytest.approx(-0.1 - 0.004)
    assert mean(found.reaction("da", "clean", "music", "s4")) == pytest.approx(0.05 - 0.004)
    assert mean(found.reaction("clean", "da", "music", "s4")) == pytest.approx(-0.05 + 0.004)
    assert found.reaction("da", "da-2x", MEAN, "s4") is None


def test_localisation_is_compared_with_another_speakers_map(plan: Plan) -> None:
    found = compare_localisation(plan, measurements_of(plan, turns=turns))
    assert found.frames["clean", FUSED].mean == pytest.approx(0.74)
    assert found.bins["clean", FUSED].mean == pytest.approx(0.64)
    assert found.beyond["clean"].mean == pytest.approx(0.14)
    assert found.beyond["clean"].high - found.beyond["clean"].low == pytest.approx(2 * 4.3027 * 0.01 / 3**0.5, rel=1e-4)
    change = found.change("da", "clean", "s4")
    turned = found.change("clean", "da", "s4")
    assert change is not None
    assert turned == -change
    assert change.mean == pytest.approx(0.05)
    assert found.change("da", "da-2x", "s4") is None


def test_without_other_talkers_nothing_is_compared(plan: Plan) -> None:
    findings = measurements_of(plan)
    findings = type(findings)(**{**vars(findings), "localisation": {}})
    found = compare_localisation(plan, findings)
    assert not found.frames
    assert found.change("da", "clean", FUSED) is None
