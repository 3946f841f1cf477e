"""Numbers and names as the reports write them, and their tables."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from speakerlens.training.model.network import STAGES

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


def listed(words: Sequence[str]) -> str:
    """Join words: "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, whose plural ends in s: "1 seed", "3 seeds"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def map_name(name: str) -> str:
    """Return the name of a map, a fusion or a step for display: stages are capitalised."""
    return _STAGE.sub(lambda stage: stage[0].upper(), name)


def entry(text: str, ends: str, bold: bool) -> Markup:
    """Return a table entry: a number with its interval below it in small print."""
    shown = Markup("<b>{}</b>").format(text) if bold else Markup.escape(text)
    return shown + Markup('<br><span class="range">{}</span>').format(ends) if ends else shown


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0
