"""The words follow from the intervals, whatever comes out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.evaluation.maps.attributions import FUSED
from speakerlens.training.evaluation.maps.localisation import OTHER_SPEAKER
from speakerlens.training.evaluation.maps.randomisation import INPUT, STEPS
from speakerlens.training.evaluation.maps.randomisation import MAPS as SANITY_MAPS
from speakerlens.training.evaluation.maps.ranking import Ranked
from speakerlens.training.model.network import STAGES
from speakerlens.training.study.accuracy import MEAN, Accuracy, Comparison, Row, compare_accuracy
from speakerlens.training.study.claims import Claim, accuracy_claim
from speakerlens.training.study.convergence import Convergence
from speakerlens.training.study.deleting import Deleting
from speakerlens.training.study.locating import Locating
from speakerlens.training.study.map_claims import deletion_claim, faithfulness_claim, grid_claim
from speakerlens.training.study.plan import Plan, make_plan
from speakerlens.training.study.worth import Worth
from tests.training.study.findings import findings_of, plan_of
from tests.training.toy import make_corpus, toy_config

NAN = float("nan")
SURE, NONE = Estimate(0.02, 0.01, 0.03), Estimate(0.02, -0.01, 0.05)
ALONE, SAME, MISSING = Estimate(0.02, NAN, NAN), Estimate(0.02, 0.02, 0.02), Estimate(NAN, NAN, NAN)
VARIANTS = ("clean", "da", "act-pair", "da-2x", "act-da", "da-pair")
NOWHERE = Locating({}, {}, {}, {})
NO_TELLING = [(ALONE, "one seed only: no telling"), (SAME, "same in every seed: no telling")]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("plan")
    corpus = make_corpus(folder / "corpus", seconds=0.2, interference=False)
    return make_plan(toy_config(folder), corpus, folder / "out", VARIANTS, 3)


def accuracy(difference: Estimate) -> Accuracy:
    rows = tuple(Row(name, 2, 2, {MEAN: Estimate(0.7, 0.6, 0.8)}) for name in ("da-2x", "act-da"))
    return Accuracy(rows, (Comparison("da-2x", "act-da", 1.1, 1.0, {MEAN: difference}, difference),), {}, {})


def dev(**gains: Estimate) -> Convergence:
    return Convergence("corrupted", {}, {"da": NONE, **gains})


def under(claim: Claim, title: str) -> tuple[str, ...]:
    """Points of the finding that begins so."""
    return next(found.points for found in claim.findings if found.text.startswith(title))


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (-SURE, "act-da minus da-2x: +2.0 points (+1.0 to +3.0 over 3 seeds; +1.0 to +3.0 over seeds and utterances)"),
        (-SURE, "; act-da names more speakers than da-2x."),
        (SURE, "; act-da names fewer speakers than da-2x."),
        (NONE, "; act-da and da-2x are not told apart."),
        *[(difference, f"; {words}.") for difference, words in NO_TELLING],
    ],
)
def test_accuracy_is_judged_by_the_interval(plan: Plan, difference: Estimate, verdict: str) -> None:
    (point,) = under(accuracy_claim(plan, accuracy(difference), dev()), "At matched compute")
    assert verdict in point


def test_augmentation_and_alignment_are_each_compared_with_what_lacks_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *VARIANTS)
    claim = accuracy_claim(plan, compare_accuracy(plan, findings_of(plan)), dev())
    updates, compute = (under(claim, f"At matched {what}") for what in ("updates", "compute"))
    assert [point.split(":")[0] for point in updates] == [
        "da minus clean",
        "act-pair minus da",
        "act-pair minus da-pair",
    ]
    assert "for 2 times the work" in updates[1]
    assert [point.split(":")[0] for point in compute] == [
        "act-da minus da-2x",
        "act-da minus act-pair",
        "act-pair minus da-2x",
    ]
    assert len(under(claim, "Pairs that match neither")) == 4
    assert "act-da 50.0 % (2.04)" in claim.findings[0].text


def test_pairs_that_cannot_be_matched_are_named(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "clean", "da", "act-da")
    claim = accuracy_claim(plan, compare_accuracy(plan, findings_of(plan)), dev())
    assert not any(found.text.startswith("At matched compute") for found in claim.findings)
    what = "act-da draws 1.75 times the crops and does 2.04 times the work of"
    points = under(claim, "Pairs that match neither")
    assert points == (f"act-da and clean: {what} clean.", f"act-da and da: {what} da.")


def test_a_pair_that_the_share_keeps_from_matching_is_not_compared(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "act-da", "da-2x", overrides=("interference.share=0.8",))
    claim = accuracy_claim(plan, compare_accuracy(plan, findings_of(plan)), dev())
    (point,) = under(claim, "At matched compute")
    assert point.startswith("act-da and da-2x: act-da draws 0.875 times the crops and does 1.11 times the work")
    assert point.endswith(" of da-2x, so they are not compared.")


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [(SURE, "still rose"), (-SURE, "fell"), (NONE, "no change told apart from none"), *NO_TELLING],
)
def test_convergence_is_judged_by_the_interval(plan: Plan, gain: Estimate, verdict: str) -> None:
    points = under(accuracy_claim(plan, accuracy(NONE), dev(clean=gain)), "Had training come to its end?")
    assert points[1].startswith("clean: ")
    assert points[1].endswith(f"; {verdict}.")


def test_too_few_evaluations_say_nothing_of_convergence(plan: Plan) -> None:
    assert "Too few evaluations" in accuracy_claim(plan, accuracy(NONE), dev(da=MISSING)).findings[-1].text


@pytest.mark.parametrize(
    ("overrides", "causes"),
    [
        ((), "the learning rate falls to its final value: part of a late rise comes from that alone"),
        (
            ("optimiser.average_last=0.1",),
            "the learning rate falls to its final value and the weights are averaged: part of a late rise",
        ),
        (("optimiser.decay=none",), "the order may change with longer training"),
    ],
)
def test_what_a_late_rise_owes_to_the_schedule_is_said(tmp_path: Path, overrides: tuple[str, ...], causes: str) -> None:
    plan = plan_of(tmp_path, "da", overrides=overrides)
    assert causes in accuracy_claim(plan, accuracy(NONE), dev()).findings[-1].text


def deleting(reaction: Estimate, index: Estimate, gap: Estimate) -> Deleting:
    """A study of three variants, with `clean` after `da`: the two are named the other way round."""
    kinds = (MEAN, "music", "speaker")
    keys = [(variant, kind, "s4") for variant in VARIANTS for kind in kinds]
    of_maps = dict.fromkeys(keys, Estimate(0.85, 0.8, 0.9))
    top1 = dict.fromkeys([(variant, kind) for variant in VARIANTS for kind in kinds], Estimate(0.7, 0.6, 0.8))

    def both(found: Estimate) -> Mapping[tuple[str, str, str, str], Estimate]:
        signed = {("act-da", "da"): found, ("clean", "da"): -found, ("act-pair", "da-pair"): found}
        return {(*pair, kind, "s4"): change for pair, change in signed.items() for kind in kinds}

    gaps = dict.fromkeys(keys, gap)
    return Deleting(kinds[1:], of_maps, of_maps, gaps, top1, dict(both(index)), dict(both(reaction)))


@pytest.mark.parametrize(
    ("reaction", "verdict"),
    [(SURE, "deletes less"), (-SURE, "deletes more"), (NONE, "not told apart"), *NO_TELLING],
)
@pytest.mark.parametrize(
    ("index", "place"),
    [(Estimate(0.06, 0.05, 0.07), "lies more on it"), (Estimate(-0.06, -0.07, -0.05), "lies less on it")],
)
def test_deletion_is_judged_by_the_reaction_and_not_by_the_index(
    plan: Plan, reaction: Estimate, verdict: str, index: Estimate, place: str
) -> None:
    points = under(deletion_claim(plan, deleting(reaction, index, NONE), NOWHERE), "Between variants: the reaction")
    whose = [f"{pair}{where}" for pair in PAIRS for where in ("", " under non-target speakers alone")]
    whose.remove("da minus clean under non-target speakers alone")
    for point, who in zip(points, whose, strict=True):
        assert point.startswith(f"{who}: reaction {'−' if reaction.mean < 0 else '+'}0.02")
        assert f", {verdict}; index {'−' if index.mean < 0 else '+'}0.06" in point
        assert point.endswith(f", {place}.")


PAIRS = ("da minus clean", "act-da minus da", "act-pair minus da-pair")


@pytest.mark.parametrize(
    ("gap", "moves"),
    [
        (SURE, "the map moves onto it"),
        (-SURE, "the map moves off it"),
        (NONE, "not told from staying where it was"),
        *NO_TELLING,
    ],
)
def test_a_reaction_is_judged_by_the_interval(plan: Plan, gap: Estimate, moves: str) -> None:
    measured = deletion_claim(plan, deleting(NONE, NONE, gap), NOWHERE).findings[0]
    every = ", ".join(f"{variant} ({'−' if gap.mean < 0 else '+'}0.02)" for variant in VARIANTS[:-1])
    assert measured.points[0].startswith(f"Music: {moves} for {every} and ")
    assert f"a reaction to the interference: {moves} for {every} and " in measured.text


@pytest.mark.parametrize(
    ("beyond", "picks", "change", "better"),
    [
        (SURE, "picks whom it explains", -SURE, "picks worse"),
        (NONE, "not told from the map of another speaker", SURE, "picks better"),
        (ALONE, "one seed only: no telling", ALONE, "one seed only: no telling"),
        (-SURE, "picks others rather than whom it explains", NONE, "not told apart"),
    ],
)
def test_localisation_is_judged_by_the_interval(
    plan: Plan, beyond: Estimate, picks: str, change: Estimate, better: str
) -> None:
    areas = {(variant, name): Estimate(0.7, NAN, NAN) for variant in VARIANTS for name in (FUSED, OTHER_SPEAKER)}
    changes = {("act-da", "da", FUSED): change, ("clean", "da", FUSED): -change, ("act-pair", "da-pair", FUSED): change}
    found = Locating(areas, areas, dict.fromkeys(VARIANTS, beyond), changes)
    claim = deletion_claim(plan, deleting(NONE, NONE, NONE), found)
    own = under(claim, "Where target, somebody else and target talk in turn")
    assert [point.split(":")[0] for point in own] == list(VARIANTS)
    assert all(point.endswith(f", {picks}.") for point in own)
    between = under(claim, "Between variants, the area")
    assert [point.split(":")[0] for point in between] == list(PAIRS)
    assert all(point.endswith(f", {better}.") for point in between)


def ranked(method: str, faithfulness: float, behind: tuple[float, float]) -> Ranked:
    return Ranked(method, 0.2, 0.2 + faithfulness, faithfulness, (0.0, 1.0), 0.5 - faithfulness, behind)


def worth(behind: tuple[float, float], grid: Estimate, utterances: int = 10) -> Worth:
    two = (ranked("s4", 0.5, (0.0, 0.0)), ranked("random", 0.1, behind))
    return Worth(
        utterances=utterances,
        methods=two,
        fusions=two,
        by_variant=dict.fromkeys(VARIANTS, two),
        recommended=(2, 3),
        sanity={(v, step, name): 0.25 for v in VARIANTS for step in (*STEPS, INPUT) for name in SANITY_MAPS},
        grid_db=dict.fromkeys([(stage, "stage-output") for stage in STAGES], grid),
        spread={},
        used=dict.fromkeys([(stage, "stage-output") for stage in STAGES], True),
    )


def test_the_most_faithful_is_named_with_those_that_are_not_told_apart(plan: Plan) -> None:
    text = " ".join(found.text for found in faithfulness_claim(plan, worth((0.2, 0.6), NONE)).findings)
    assert "S4 is the most faithful: 0.50" in text
    assert "told apart from all others" in text
    assert "the most faithful takes S3 and S4." in text
    text = " ".join(found.text for found in faithfulness_claim(plan, worth((-0.1, 0.6), NONE)).findings)
    assert "not told apart from it: random" in text


def test_a_handful_of_utterances_gives_no_verdict_of_faithfulness(plan: Plan) -> None:
    text = " ".join(found.text for found in faithfulness_claim(plan, worth((0.2, 0.6), NONE, utterances=9)).findings)
    assert "9 utterances: S4 0.50 and random 0.10" in text
    assert "No verdict: it takes 10 utterances at least." in text
    assert "the most faithful takes" not in text
    assert "told apart" not in text


@pytest.mark.parametrize(
    ("grid", "verdict"),
    [(SURE, ", a grid"), (-SURE, ", no grid"), (NONE, ", not told from none"), *NO_TELLING, (MISSING, "small)")],
)
def test_the_grid_is_judged_by_the_interval(grid: Estimate, verdict: str) -> None:
    points = grid_claim(worth((0.2, 0.6), grid)).findings[0].points
    assert len(points) == len(STAGES)
    assert all(f"{verdict}. Maps are taken at the stage output." in point for point in points)


def test_an_interval_over_one_seed_is_not_shown(plan: Plan) -> None:
    claim = accuracy_claim(replace(plan, seeds=(3,)), accuracy(ALONE), dev())
    (point,) = under(claim, "At matched compute")
    assert "−2.0 points (– over utterances)" in point
