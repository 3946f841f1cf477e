"""Numbers, names and verdicts as the report writes them."""

import math
import re
from collections.abc import Mapping, Sequence

from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.model.network import STAGES

ONE_SEED = "one seed only: no telling"

_SAME = "same in every seed"
_STAGE = re.compile(rf"\b(?:{'|'.join(STAGES)})\b")


def number(value: float, digits: int = 2) -> str:
    """Write a number with a true minus sign; what has no value is a dash, and what rounds to zero has no sign."""
    return "–" if math.isnan(value) else f"{_rounded(value, digits):.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign; what rounds to zero has none."""
    return number(value, digits) if not _rounded(value, digits) > 0 else f"+{number(value, digits)}"


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0


def percent(share: float) -> str:
    """Write a share in percent, without the sign."""
    return number(100 * share, 1)


def interval(found: Estimate, digits: int = 2, factor: float = 1.0) -> str:
    """Write the interval of a difference: "+0.01 to +0.05"; a dash where there is none."""
    if math.isnan(found.low):
        return "–"
    if found.same:
        return _SAME
    return f"{signed(factor * found.low, digits)} to {signed(factor * found.high, digits)}"


def difference(found: Estimate, digits: int = 2, unit: str = "") -> str:
    """Write a difference with its interval: "+0.03 (+0.01 to +0.05)"."""
    ends = "" if math.isnan(found.low) else f" ({interval(found, digits)})"
    return f"{signed(found.mean, digits)}{unit}{ends}"


def range_of(found: Estimate, digits: int = 2, factor: float = 1.0) -> str:
    """Write the interval of a figure: "0.01 to 0.05"; nothing where there is none."""
    if math.isnan(found.low):
        return ""
    if found.same:
        return _SAME
    return f"{number(factor * found.low, digits)} to {number(factor * found.high, digits)}"


def told(found: Estimate, words: Mapping[int, str]) -> str:
    """Give the words for an estimate's sign (1, -1, and 0 where its interval holds zero), or say why there are none."""
    if math.isnan(found.mean):
        return "not measured"
    if math.isnan(found.low):
        return ONE_SEED
    return f"{_SAME}: no telling" if found.same else words[found.sign]


def listed(words: Sequence[str]) -> str:
    """Join words as a sentence does: "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def counted(count: int, noun: str) -> str:
    """Write how many there are of something that forms its plural with an s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def map_name(name: str) -> str:
    """Name a map, a fusion or a step as the text does: stages have a capital."""
    return _STAGE.sub(lambda stage: stage[0].upper(), name)
