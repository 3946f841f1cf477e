"""Numbers as the report writes them."""

import math

from training.study.statistics import Estimate


def number(value: float, digits: int = 2) -> str:
    """Write a number with a true minus sign; what has no value is a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign."""
    return "–" if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    """Write a share in percent, without the sign."""
    return number(100 * share, 1)


def interval(found: Estimate, digits: int = 2, factor: float = 1.0) -> str:
    """Write the interval of a difference: "+0.01 to +0.05"; a dash where there is none."""
    if math.isnan(found.low):
        return "–"
    return f"{signed(factor * found.low, digits)} to {signed(factor * found.high, digits)}"


def difference(found: Estimate, digits: int = 2, unit: str = "") -> str:
    """Write a difference with its interval: "+0.03 (+0.01 to +0.05)"."""
    ends = "" if math.isnan(found.low) else f" ({interval(found, digits)})"
    return f"{signed(found.mean, digits)}{unit}{ends}"


def range_of(found: Estimate, digits: int = 2, factor: float = 1.0) -> str:
    """Write the interval of a figure: "0.01 to 0.05"; nothing where there is none."""
    if math.isnan(found.low):
        return ""
    return f"{number(factor * found.low, digits)} to {number(factor * found.high, digits)}"


def listed(words: list[str] | tuple[str, ...]) -> str:
    """Join words as a sentence does: "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
