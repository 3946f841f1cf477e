"""Numbers, intervals and names as the report writes them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from speakerlens.training.evaluation.conditions import CLEAN_KIND, LABELS
from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.model.network import STAGES
from speakerlens.training.study.accuracy import MEAN

_SAME = "same in every seed"
_STAGE = re.compile(rf"\b(?:{'|'.join(STAGES)})\b")

Entry = Markup | str


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        caption: its text. headings: of all columns, the first included.
        rows: name and entries of each; a variant's name is shown with its colour.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]


def number(value: float, digits: int = 2) -> str:
    """Return a number with a true minus sign; a dash for NaN, and no sign for what rounds to zero."""
    return "–" if math.isnan(value) else f"{_rounded(value, digits):.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign; what rounds to zero has none."""
    return number(value, digits) if not _rounded(value, digits) > 0 else f"+{number(value, digits)}"


def percent(share: float) -> str:
    """Return a share in percent, without the sign."""
    return number(100 * share, 1)


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


def listed(words: Sequence[str]) -> str:
    """Join words: "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, whose plural ends in s: "1 seed", "3 seeds"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def map_name(name: str) -> str:
    """Return the name of a map, a fusion or a step for display: stages are capitalised."""
    return _STAGE.sub(lambda stage: stage[0].upper(), name)


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


def entry(text: str, ends: str, bold: bool) -> Markup:
    """Return a table entry: a number with its interval below it in small print."""
    shown = Markup("<b>{}</b>").format(text) if bold else Markup.escape(text)
    return shown + Markup('<br><span class="range">{}</span>').format(ends) if ends else shown


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
