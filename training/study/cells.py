"""The cells of the report's tables, ready to show."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from speakerlens.training.evaluation.conditions import CLEAN_KIND, LABELS
from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.study.accuracy import MEAN
from speakerlens.training.study.words import interval, number, percent, range_of, signed

Cell = Markup | str


@dataclass(frozen=True)
class Grid:
    """A table of the report.

    Attributes:
        caption: what it shows. headings: of all columns, the rows' names included.
        rows: name and cells of each; a variant's name is shown with its colour.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def heading(column: str) -> str:
    """Name a column of accuracies."""
    if column == MEAN:
        return "under interference"
    return "without" if column == CLEAN_KIND else LABELS[column].lower()


def share(found: Estimate) -> Markup:
    """A share in percent; its interval ends where shares do."""
    return cell(percent(found.mean), range_of(found.clipped(0.0, 1.0), 1, 100), False)


def value(found: Estimate, digits: int = 2) -> Markup:
    """Write a figure with its interval."""
    return cell(number(found.mean, digits), range_of(found, digits), False)


def change(found: Estimate, digits: int = 2, factor: float = 1.0) -> Markup:
    """Write a difference with its interval, bold where that leaves zero out."""
    ends = "" if math.isnan(found.low) else interval(found, digits, factor)
    return cell(signed(factor * found.mean, digits), ends, found.sign != 0)


def cell(text: str, ends: str, bold: bool) -> Markup:
    """Write a number with something small below it."""
    shown = Markup("<b>{}</b>").format(text) if bold else Markup.escape(text)
    return shown + Markup('<br><span class="range">{}</span>').format(ends) if ends else shown
