"""Estimates over seeds as the study's report writes them."""

import math

from markupsafe import Markup

from speakerlens.training.evaluation.conditions import CLEAN_KIND, LABELS
from speakerlens.training.evaluation.formatting import entry, number, percent, signed
from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.study.accuracy import MEAN

_SAME = "same in every seed"


def difference_interval(estimate: Estimate, digits: int = 2, factor: float = 1.0) -> str:
    """Return the interval of a difference, "+0.01 to +0.05"; a dash where there is none."""
    if math.isnan(estimate.low):
        return "–"
    if estimate.same:
        return _SAME
    return f"{signed(factor * estimate.low, digits)} to {signed(factor * estimate.high, digits)}"


def value_interval(estimate: Estimate, digits: int = 2, factor: float = 1.0) -> str:
    """Return the interval of a figure, "0.01 to 0.05"; empty where there is none."""
    if math.isnan(estimate.low):
        return ""
    if estimate.same:
        return _SAME
    return f"{number(factor * estimate.low, digits)} to {number(factor * estimate.high, digits)}"


def sentence(name: str, estimate: Estimate, unit: str = "", digits: int = 2, factor: float = 1.0) -> str:
    """Return a difference in one line: "da − clean: +20.1 points [15.0, 25.2]: higher"."""
    low, high = (number(factor * end, digits) for end in estimate[1:])
    if math.isnan(estimate.mean):
        return f"{name}: not measured"
    if math.isnan(estimate.low):
        ends, verdict = "", "one seed, no interval"
    elif estimate.same:
        ends, verdict = "", f"{_SAME}, no interval"
    else:
        ends, verdict = f" [{low}, {high}]", {1: "higher", -1: "lower", 0: "not told apart"}[estimate.sign]
    return f"{name}: {signed(factor * estimate.mean, digits)}{unit}{ends}: {verdict}"


def heading(column: str) -> str:
    """Return the heading of a column of accuracies."""
    if column == MEAN:
        return "under interference"
    return "clean" if column == CLEAN_KIND else LABELS[column].lower()


def share(estimate: Estimate) -> Markup:
    """Return a table entry: a share in percent, its interval clipped to [0, 100]."""
    return entry(percent(estimate.mean), value_interval(estimate.clipped(0.0, 1.0), 1, 100), bold=False)


def value(estimate: Estimate, digits: int = 2) -> Markup:
    """Return a table entry: a figure with its interval."""
    return entry(number(estimate.mean, digits), value_interval(estimate, digits), bold=False)


def change(estimate: Estimate, digits: int = 2, factor: float = 1.0) -> Markup:
    """Return a table entry: a difference with its interval, bold where that excludes zero."""
    ends = "" if math.isnan(estimate.low) else difference_interval(estimate, digits, factor)
    return entry(signed(factor * estimate.mean, digits), ends, bold=estimate.sign != 0)
