"""Numbers, intervals and sentences of the report."""

import math

import pytest

from speakerlens.training.evaluation.formatting import counted, listed, map_name, number, signed
from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.study.formatting import change, difference_interval, sentence, value_interval

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(-0.04, 1, "0.0"), (-0.06, 1, "−0.1"), (-0.0, 2, "0.00"), (0.04, 1, "0.0"), (-1.5, 1, "−1.5"), (NAN, 1, "–")],
)
def test_what_rounds_to_zero_has_no_sign(value: float, digits: int, shown: str) -> None:
    assert number(value, digits) == shown
    assert signed(value, digits) == shown


def test_differences_have_a_sign() -> None:
    assert signed(0.06, 1) == "+0.1"
    assert difference_interval(Estimate(0.01, -0.004, 0.024)) == "0.00 to +0.02"


def test_interval_without_width_is_named() -> None:
    same, one_seed = Estimate(1.0, 1.0, 1.0), Estimate(1.0, NAN, NAN)
    assert value_interval(same) == difference_interval(same) == "same in every seed"
    assert value_interval(one_seed) == ""
    assert difference_interval(one_seed) == "–"


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.2, 0.1, 0.3), "a − b: +0.20 [0.10, 0.30]: higher"),
        (Estimate(-0.2, -0.3, -0.1), "a − b: −0.20 [−0.30, −0.10]: lower"),
        (Estimate(0.2, -0.1, 0.5), "a − b: +0.20 [−0.10, 0.50]: not told apart"),
        (Estimate(0.2, NAN, NAN), "a − b: +0.20: one seed, no interval"),
        (Estimate(0.2, 0.2, 0.2), "a − b: +0.20: same in every seed, no interval"),
        (Estimate(NAN, NAN, NAN), "a − b: not measured"),
    ],
)
def test_sentence_follows_the_interval(estimate: Estimate, text: str) -> None:
    assert sentence("a − b", estimate) == text


def test_sentence_in_points() -> None:
    line = sentence("act-pair − da-pair", Estimate(0.002, -0.006, 0.01), " points", 1, 100)
    assert line == "act-pair − da-pair: +0.2 points [−0.6, 1.0]: not told apart"


@pytest.mark.parametrize(("low", "bold"), [(0.1, True), (-0.1, False)])
def test_differences_that_exclude_zero_are_bold(low: float, bold: bool) -> None:
    assert ("<b>" in change(Estimate(0.2, low, 0.3))) == bold


@pytest.mark.parametrize(
    ("name", "shown"),
    [("s4", "S4"), ("s2+s3", "S2+S3"), ("s4-raw", "S4-raw"), ("fused", "fused"), ("grad-cam++", "grad-cam++")],
)
def test_stages_are_capitalised(name: str, shown: str) -> None:
    assert map_name(name) == shown


def test_counts_have_the_right_plural() -> None:
    assert [counted(count, "variant") for count in (1, 2)] == ["1 variant", "2 variants"]
    assert counted(1251, "speaker") == "1,251 speakers"


def test_lists_read_as_sentences() -> None:
    assert [listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
