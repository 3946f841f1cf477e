"""Numbers as a reader expects them."""

import math

import pytest

from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.study.words import (
    counted,
    difference,
    interval,
    listed,
    map_name,
    number,
    range_of,
    signed,
    told,
)

NAN = math.nan
WORDS = {1: "more", -1: "less", 0: "not told apart"}


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(-0.04, 1, "0.0"), (-0.06, 1, "−0.1"), (-0.0, 2, "0.00"), (0.04, 1, "0.0"), (-1.5, 1, "−1.5"), (NAN, 1, "–")],
)
def test_what_rounds_to_zero_has_no_sign(value: float, digits: int, shown: str) -> None:
    assert number(value, digits) == shown
    assert signed(value, digits) == shown


def test_differences_have_a_sign() -> None:
    assert signed(0.06, 1) == "+0.1"
    assert interval(Estimate(0.01, -0.004, 0.024)) == "0.00 to +0.02"


def test_a_range_without_width_is_said_to_be_the_same_in_every_seed() -> None:
    same, alone = Estimate(1.0, 1.0, 1.0), Estimate(1.0, NAN, NAN)
    assert range_of(same) == interval(same) == "same in every seed"
    assert difference(same) == "+1.00 (same in every seed)"
    assert range_of(alone) == ""
    assert interval(alone) == "–"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Estimate(0.2, 0.1, 0.3), "more"),
        (Estimate(-0.2, -0.3, -0.1), "less"),
        (Estimate(0.2, -0.1, 0.5), "not told apart"),
        (Estimate(0.2, NAN, NAN), "one seed only: no telling"),
        (Estimate(0.2, 0.2, 0.2), "same in every seed: no telling"),
        (Estimate(NAN, NAN, NAN), "not measured"),
    ],
)
def test_a_verdict_needs_seeds_that_differ(found: Estimate, words: str) -> None:
    assert told(found, WORDS) == words


@pytest.mark.parametrize(
    ("name", "shown"),
    [("s4", "S4"), ("s2+s3", "S2+S3"), ("s4-raw", "S4-raw"), ("fused", "fused"), ("grad-cam++", "grad-cam++")],
)
def test_stages_have_one_name(name: str, shown: str) -> None:
    assert map_name(name) == shown


def test_one_is_not_many() -> None:
    assert [counted(count, "variant") for count in (1, 2)] == ["1 variant", "2 variants"]
    assert counted(1251, "speaker") == "1,251 speakers"


def test_lists_read_as_sentences_do() -> None:
    assert [listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
