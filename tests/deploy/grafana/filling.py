"""Replace the dashboards' variables in a query, as Grafana does."""

import re
from collections.abc import Mapping

from deploy.grafana.model import Dashboard

MARK = re.compile(r"\{\{\s*(\w+)\s*\}\}")
"""A label in a legend."""


def everything(dashboard: Dashboard) -> dict[str, str]:
    """Return the value of every variable while All is chosen."""
    return {variable.name: ".*" for variable in dashboard.variables}


def fill(expression: str, choices: Mapping[str, str], rate_seconds: float) -> str:
    """Return the expression as Prometheus gets it; raise ValueError for a variable without a choice."""
    filled = expression.replace("$__rate_interval", f"{round(rate_seconds)}s")
    for name, choice in choices.items():
        filled = re.sub(rf"\${name}\b", choice.replace("\\", r"\\"), filled)
    if re.search(r"\$[A-Za-z_]", filled):  # $1 belongs to label_replace
        raise ValueError(f"unknown variables: {filled}")
    return filled
