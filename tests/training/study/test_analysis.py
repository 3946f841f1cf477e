"""The summary of a study: which comparisons it has, and that each line follows from its interval."""

from pathlib import Path

import pytest

from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.evaluation.maps.attributions import FUSED
from speakerlens.training.study.accuracy import MEAN, Accuracy, Comparison, Row, compare_accuracy
from speakerlens.training.study.analysis import SummaryGroup, summarise
from speakerlens.training.study.logs import Convergence
from speakerlens.training.study.map_quality import DeletionResults, LocalisationResults
from speakerlens.training.study.plan import Plan
from tests.training.study.measurements import measurements_of, plan_of

NAN = float("nan")
SURE, UNSURE = Estimate(0.02, 0.01, 0.03), Estimate(0.02, -0.01, 0.05)
ONE_SEED, SAME, MISSING = Estimate(0.02, NAN, NAN), Estimate(0.02, 0.02, 0.02), Estimate(NAN, NAN, NAN)
VERDICTS = [
    (SURE, "higher"),
    (-SURE, "lower"),
    (UNSURE, "not told apart"),
    (ONE_SEED, "one seed, no interval"),
    (SAME, "same in every seed, no interval"),
]
VARIANTS = ("clean", "da", "act-pair", "da-2x", "act-da", "da-pair")
PAIRS = ("da − clean", "act-da − da", "act-pair − da-pair")
EMPTY = LocalisationResults({}, {}, {}, {})


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_of(tmp_path_factory.mktemp("plan"), *VARIANTS)


def accuracy(difference: Estimate) -> Accuracy:
    rows = tuple(Row(name, 2, 2, {MEAN: Estimate(0.7, 0.6, 0.8)}) for name in ("da-2x", "act-da"))
    return Accuracy(rows, (Comparison("da-2x", "act-da", 1.1, 1.0, {MEAN: difference}, difference),), {}, {})


def convergence(**gains: Estimate) -> Convergence:
    return Convergence("corrupted", {}, {"da": UNSURE, **gains})


def deletion(reaction: Estimate, gap: Estimate = UNSURE) -> DeletionResults:
    """Return results with `clean` after `da`: the two are compared in the other order."""
    kinds = (MEAN, "music", "speaker")
    keys = [(variant, kind, "s4") for variant in VARIANTS for kind in kinds]
    by_pair = {("act-da", "da"): reaction, ("clean", "da"): -reaction, ("act-pair", "da-pair"): reaction}
    reactions = {(*pair, kind, "s4"): change for pair, change in by_pair.items() for kind in kinds}
    return DeletionResults(kinds[1:], {}, {}, dict.fromkeys(keys, gap), {}, {}, reactions)


def group(plan: Plan, title: str, **results: object) -> tuple[str, ...]:
    """Return the lines of the group whose title begins so; none if there is no such group."""
    defaults = {
        "accuracy": accuracy(UNSURE),
        "dev": convergence(),
        "deletion": deletion(UNSURE),
        "localisation": EMPTY,
    }
    groups: tuple[SummaryGroup, ...] = summarise(plan, **{**defaults, **results})  # type: ignore[arg-type]
    return next((each.lines for each in groups if each.title.startswith(title)), ())


@pytest.mark.parametrize(("difference", "verdict"), VERDICTS)
def test_accuracy_verdict_follows_the_interval(plan: Plan, difference: Estimate, verdict: str) -> None:
    (line,) = group(plan, "Top-1", accuracy=accuracy(-difference))
    assert line.startswith(f"act-da − da-2x: {'−' if difference.mean < 0 else '+'}2.0 points")
    assert line.endswith(f": {verdict}")
    assert ("[" in line) == ("no interval" not in verdict)


def test_accuracy_line_has_the_interval_in_points(plan: Plan) -> None:
    (line,) = group(plan, "Top-1", accuracy=accuracy(-UNSURE))
    assert line == "act-da − da-2x: +2.0 points [−1.0, 5.0]: not told apart"


def test_only_matched_pairs_are_summarised(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *VARIANTS)
    lines = group(plan, "Top-1", accuracy=compare_accuracy(plan, measurements_of(plan)))
    assert [line.split(":")[0] for line in lines] == [
        "da − clean",
        "act-pair − da",
        "act-pair − da-pair",
        "act-da − da-2x",
        "act-da − act-pair",
        "act-pair − da-2x",
    ]
    few = plan_of(tmp_path / "few", "clean", "da", "act-da")
    lines = group(few, "Top-1", accuracy=compare_accuracy(few, measurements_of(few)))
    assert [line.split(":")[0] for line in lines] == ["da − clean"]


def test_pair_unmatched_by_the_share_is_left_out(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "act-da", "da-2x", overrides=("interference.share=0.8",))
    results = compare_accuracy(plan, measurements_of(plan))
    assert group(plan, "Top-1", accuracy=results) == ()
    (pair,) = results.unmatched
    assert (pair.crops, pair.work) == pytest.approx((2 / 1.75, 1 / 1.108), rel=1e-2)


@pytest.mark.parametrize(("gain", "verdict"), [*VERDICTS, (MISSING, "not measured")])
def test_gain_verdict_follows_the_interval(plan: Plan, gain: Estimate, verdict: str) -> None:
    lines = group(plan, "Gain on corrupted dev crops", dev=convergence(clean=gain))
    assert lines[1].startswith("clean: ")
    assert lines[1].endswith(f": {verdict}")


@pytest.mark.parametrize(("reaction", "verdict"), VERDICTS)
def test_deletion_is_compared_by_the_reaction(plan: Plan, reaction: Estimate, verdict: str) -> None:
    lines = group(plan, "Reaction, between variants", deletion=deletion(reaction))
    names = [f"{pair}{where}" for pair in PAIRS for where in ("", ", non-target speaker alone")]
    names.remove("da − clean, non-target speaker alone")
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"{name}: {'−' if reaction.mean < 0 else '+'}0.02")
        assert line.endswith(f": {verdict}")


@pytest.mark.parametrize(("gap", "verdict"), VERDICTS)
def test_reaction_verdict_follows_the_interval(plan: Plan, gap: Estimate, verdict: str) -> None:
    lines = group(plan, "Reaction to the interference", deletion=deletion(UNSURE, gap))
    assert [line.split(":")[0] for line in lines] == list(VARIANTS)
    assert all(line.endswith(f": {verdict}") for line in lines)


@pytest.mark.parametrize(("beyond", "verdict"), VERDICTS)
@pytest.mark.parametrize(("change", "change_verdict"), VERDICTS[:3])
def test_localisation_verdicts_follow_the_intervals(
    plan: Plan, beyond: Estimate, verdict: str, change: Estimate, change_verdict: str
) -> None:
    changes = {("act-da", "da", FUSED): change, ("clean", "da", FUSED): -change, ("act-pair", "da-pair", FUSED): change}
    results = LocalisationResults({}, {}, dict.fromkeys(VARIANTS, beyond), changes)
    own = group(plan, "Localisation: area of the target's fused map minus", localisation=results)
    assert [line.split(":")[0] for line in own] == list(VARIANTS)
    assert all(line.endswith(f": {verdict}") for line in own)
    between = group(plan, "Localisation: area of the target's fused map, between", localisation=results)
    assert [line.split(":")[0] for line in between] == list(PAIRS)
    assert all(line.endswith(f": {change_verdict}") for line in between)


def test_groups_without_lines_are_left_out(plan: Plan) -> None:
    assert group(plan, "Localisation") == ()
