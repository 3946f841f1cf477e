"""Grafana's part in a query: variables filled in, series named."""

import re
from collections.abc import Mapping

from deploy.grafana.model import Dashboard

MARK = re.compile(r"\{\{\s*(\w+)\s*\}\}")
SCRAPES_PER_RATE = 4


def everything(dashboard: Dashboard) -> dict[str, str]:
    """All values of every variable, as the choice All means it."""
    return {variable.name: ".*" for variable in dashboard.variables}


def rate_interval(scrape_interval: float, step: float) -> float:
    """`$__rate_interval` in seconds: a step of the panel, or four scrapes, so that two samples are in it for sure."""
    return max(step + scrape_interval, SCRAPES_PER_RATE * scrape_interval)


def fill(expression: str, choices: Mapping[str, str], rate_seconds: float) -> str:
    """The expression as Prometheus gets it.

    Raises:
        ValueError: a variable has no choice.
    """
    filled = expression.replace("$__rate_interval", f"{max(1, round(rate_seconds))}s")
    for name, choice in choices.items():
        filled = re.sub(rf"\${name}\b", choice.replace("\\", r"\\"), filled)
    if re.search(r"\$[A-Za-z_]", filled):  # $1 belongs to label_replace
        raise ValueError(f"not all variables are known: {filled}")
    return filled


def name(legend: str, labels: Mapping[str, str]) -> str:
    """The name of a series by its panel's legend."""
    return " ".join(MARK.sub(lambda mark: labels.get(mark[1], ""), legend).split())
