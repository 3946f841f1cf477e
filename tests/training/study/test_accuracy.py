"""Comparisons of accuracy: which variants match, and paired differences."""

from pathlib import Path

import pytest

from speakerlens.training.study.accuracy import MEAN, Accuracy, compare_accuracy
from speakerlens.training.study.plan import PlannedRun
from tests.training.study.measurements import measurements_of, plan_of

ALL = ("clean", "da", "act-da", "act-pair", "da-pair", "da-2x")


def compared(folder: Path, *variants: str, seeds: int = 3, overrides: tuple[str, ...] = ()) -> Accuracy:
    plan = plan_of(folder, *variants, seeds=seeds, overrides=overrides)
    return compare_accuracy(plan, measurements_of(plan))


def pairs(found: Accuracy) -> list[set[tuple[str, str]]]:
    """At matched updates, at matched compute, and in neither."""
    kinds = (found.matched("updates"), found.matched("compute"), found.unmatched)
    return [{(each.variant, each.reference) for each in some} for some in kinds]


def test_every_variant_is_shown_with_its_work(tmp_path: Path) -> None:
    found = compared(tmp_path, "clean", "da", "act-da")
    assert [(row.variant, row.crops) for row in found.rows] == [("clean", 1), ("da", 1), ("act-da", 1.75)]
    assert [row.work for row in found.rows] == pytest.approx([1, 1, 1.75 + 1.75 / 6])


def test_pairs_are_matched_by_their_work_to_each_other(tmp_path: Path) -> None:
    """`clean` and `da` do the same work, though others do twice as much."""
    updates, compute, neither = pairs(compared(tmp_path, "clean", "da", "act-da"))
    assert updates == {("da", "clean")}
    assert compute == {("da", "clean")}
    assert neither == {("act-da", "clean"), ("act-da", "da")}


def test_every_two_of_the_same_work_are_matched(tmp_path: Path) -> None:
    updates, compute, neither = pairs(compared(tmp_path, *ALL))
    ones, twos = ("clean", "da"), ("act-da", "act-pair", "da-pair", "da-2x")
    assert compute == {("da", "clean")} | {(b, a) for i, a in enumerate(twos) for b in twos[i + 1 :]}
    drawn_once = [name for name in ALL if name not in {"act-da", "da-2x"}]
    assert updates == {(b, a) for i, a in enumerate(drawn_once) for b in drawn_once[i + 1 :]}
    assert neither == {(b, a) for a in ones for b in ("act-da", "da-2x")}


@pytest.mark.parametrize(
    ("override", "matched"),
    [
        ("interference.share=0.6", True),  # 2.10 to 2
        ("interference.share=0.8", False),  # 2.22 to 2
        ("objective.clean_gradient=true", False),  # 2.63 to 2
    ],
)
def test_the_configuration_decides_what_can_be_matched(tmp_path: Path, override: str, matched: bool) -> None:
    found = compared(tmp_path, "act-da", "da-2x", overrides=(override,))
    assert pairs(found) == [
        set(),
        {("da-2x", "act-da")} if matched else set(),
        set() if matched else {("da-2x", "act-da")},
    ]
    assert len(found.rows) == 2


def test_single_variant_has_no_comparison(tmp_path: Path) -> None:
    found = compared(tmp_path, "da")
    assert [row.variant for row in found.rows] == ["da"]
    assert found.comparisons == ()


def test_differences_are_paired_by_seed_either_way_round(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "clean", "da")
    right = {("clean", 3): 2, ("clean", 4): 6, ("clean", 5): 3, ("da", 3): 4, ("da", 4): 7, ("da", 5): 6}

    def of(run: PlannedRun) -> int:
        return right[run.variant, run.seed]

    found = compare_accuracy(plan, measurements_of(plan, right=of)).compare("da", "clean")
    turned = compare_accuracy(plan, measurements_of(plan, right=of)).compare("clean", "da")
    assert found is not None
    assert turned is not None
    half = 4.3027 * 0.1 / 3**0.5  # differences 0.2, 0.1 and 0.3
    assert found.top1[MEAN] == pytest.approx((0.2, 0.2 - half, 0.2 + half), rel=1e-4)
    assert turned.top1[MEAN] == -found.top1[MEAN]
    assert found.top1["clean"].same
    assert (found.variant, found.work) == ("da", 1)
