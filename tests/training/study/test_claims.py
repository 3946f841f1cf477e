"""The words follow from the intervals, whatever comes out."""

from dataclasses import replace

import pytest

from tests.training.toy import make_corpus, toy_config
from training.maps.localisation import MAPS as TURN_MAPS
from training.maps.randomisation import INPUT, STEPS
from training.maps.randomisation import MAPS as SANITY_MAPS
from training.maps.ranking import Ranked
from training.network import STAGES
from training.study.accuracy import MEAN, Accuracy, Comparison, Row, Table
from training.study.claims import accuracy_claim, deletion_claim, faithfulness_claim, grid_claim
from training.study.convergence import Convergence
from training.study.deleting import Deleting
from training.study.plan import Plan, make_plan
from training.study.statistics import Estimate
from training.study.worth import Worth

SURE, NONE = Estimate(0.02, 0.01, 0.03), Estimate(0.02, -0.01, 0.05)
VARIANTS = ("clean", "da", "act-pair", "da-2x", "act-da")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("plan")
    corpus = make_corpus(folder / "corpus", seconds=0.2, interference=False)
    return make_plan(toy_config(folder), corpus, folder / "out", VARIANTS, 3)


def accuracy(difference: Estimate) -> Accuracy:
    rows = tuple(Row(name, {MEAN: Estimate(0.7, 0.6, 0.8)}) for name in ("da-2x", "act-da"))
    comparison = Comparison("da-2x", "act-da", {MEAN: difference}, difference)
    return Accuracy((Table("compute", rows, (comparison,)),), {}, {})


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (-SURE, "act-da minus da-2x: +2.0 points (+1.0 to +3.0 over 3 seeds"),
        (-SURE, "So act-da names more speakers than da-2x."),
        (SURE, "So act-da names fewer speakers than da-2x."),
        (NONE, "So act-da and da-2x are not told apart."),
        (Estimate(0.02, float("nan"), float("nan")), "So act-da and da-2x are not told apart."),
    ],
)
def test_accuracy_is_judged_by_the_interval(plan: Plan, difference: Estimate, verdict: str) -> None:
    claim = accuracy_claim(plan, accuracy(difference), Convergence("corrupted", {}, {"da": NONE}))
    assert any(verdict in point for point in claim.findings[0].points)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"da": SURE, "clean": NONE}, "It still rose for da: trained longer"),
        ({"da": -SURE, "clean": NONE}, "No rise is told apart from none."),
        ({"da": Estimate(*[float("nan")] * 3)}, "Too few evaluations"),
    ],
)
def test_convergence_is_judged_by_the_interval(plan: Plan, gains: dict[str, Estimate], verdict: str) -> None:
    claim = accuracy_claim(plan, accuracy(NONE), Convergence("corrupted", {}, gains))
    assert verdict in claim.findings[-1].text


@pytest.mark.parametrize(
    ("change", "lies", "deletes", "moves"),
    [
        (SURE, "lies more on it", "deletes less", "moves onto it"),
        (-SURE, "lies less on it", "deletes more", "moves off it"),
        (NONE, "not told apart", "not told apart", "not told from staying where it was"),
    ],
)
def test_deletion_is_judged_by_the_interval(plan: Plan, change: Estimate, lies: str, deletes: str, moves: str) -> None:
    keys = [(variant, kind, "s4") for variant in VARIANTS for kind in (MEAN, "music")]
    of_maps = dict.fromkeys(keys, Estimate(0.85, 0.8, 0.9))
    top1 = dict.fromkeys([(variant, MEAN) for variant in VARIANTS], Estimate(0.7, 0.6, 0.8))
    # The second as a plan has it that names the two the other way round.
    changes = {("act-da", "da", MEAN, "s4"): change, ("clean", "da", MEAN, "s4"): -change}
    found = Deleting(("music",), of_maps, of_maps, dict.fromkeys(keys, change), top1, changes, changes)
    measured, compared = deletion_claim(plan, found).findings
    assert moves in measured.text
    assert "act-da" in measured.points[0] and measured.points[0].endswith(f"{moves}.")
    shown = "−0.02 (−0.03 to −0.01)" if change is not NONE and change.mean < 0 else "+0.02"
    for point, who in zip(compared.points, ("da minus clean: ", "act-da minus da: "), strict=True):
        assert point.startswith(who + shown)
        assert f", {lies}; reaction" in point
        assert point.endswith(f", {deletes}.")


def ranked(method: str, faithfulness: float, behind: tuple[float, float]) -> Ranked:
    return Ranked(method, 0.2, 0.2 + faithfulness, faithfulness, (0.0, 1.0), 0.5 - faithfulness, behind)


def worth(behind: tuple[float, float], grid: Estimate) -> Worth:
    two = (ranked("s4", 0.5, (0.0, 0.0)), ranked("random", 0.1, behind))
    return Worth(
        frames=dict.fromkeys([(variant, name) for variant in VARIANTS for name in TURN_MAPS], SURE),
        bins={},
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
    assert "s4 is the most faithful: 0.50" in text
    assert "told apart from all others" in text
    assert "the most faithful takes S3 and S4." in text
    text = " ".join(found.text for found in faithfulness_claim(plan, worth((-0.1, 0.6), NONE)).findings)
    assert "not told apart from it: random" in text


@pytest.mark.parametrize(
    ("grid", "verdict"),
    [
        (SURE, ", a grid,"),
        (-SURE, ", no grid,"),
        (NONE, ", not told from none,"),
        (Estimate(*[float("nan")] * 3), "small"),
    ],
)
def test_the_grid_is_judged_by_the_interval(grid: Estimate, verdict: str) -> None:
    claim = grid_claim(worth((0.2, 0.6), grid))
    assert sum(verdict in point for point in claim.findings[0].points) == len(STAGES)


def test_a_single_seed_is_said_to_be_one(plan: Plan) -> None:
    alone = Estimate(0.1, float("nan"), float("nan"))
    dev = Convergence("corrupted", {}, {"da": NONE})
    claim = accuracy_claim(replace(plan, seeds=(3,)), accuracy(alone), dev)
    assert "only one seed" in claim.findings[0].points[0]
