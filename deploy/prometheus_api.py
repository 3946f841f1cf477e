"""What a Prometheus answers to PromQL, over its HTTP API."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Series:
    """One series: its labels, the moments of its samples in seconds since 1970, [samples], and their values, alike."""

    labels: Mapping[str, str]
    times: NDArray[np.float64]
    values: NDArray[np.float64]


class QueryError(Exception):
    """Prometheus cannot answer the expression: its own words."""


class Prometheus:
    """A Prometheus at an address such as http://127.0.0.1:9090."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def query(self, expression: str, at: float | None = None) -> list[Series]:
        """The value now, or at a moment in seconds since 1970: a sample for each series, none where there is nothing.

        Raises:
            QueryError: the expression is wrong, or takes too long.
            OSError: there is no Prometheus.
        """
        return _series(self.get("query", query=expression, **({} if at is None else {"time": at})))

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """The values every `step` seconds from `start` to `end`, both in seconds since 1970.

        Raises:
            QueryError: the expression is wrong, or takes too long.
            OSError: there is no Prometheus.
        """
        return _series(self.get("query_range", query=expression, start=start, end=end, step=step))

    def metrics(self) -> set[str]:
        """The names of all metrics that are stored."""
        return set(self.get("label/__name__/values"))

    def get(self, path: str, **fields: object) -> Any:
        """The `data` of the answer to any path under /api/v1/.

        Raises:
            QueryError: it is refused.
            OSError: there is no Prometheus.
        """
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            content = error.read()
            try:
                reason = json.loads(content)["error"]
            except (ValueError, KeyError):
                raise error from None
            raise QueryError(str(reason)) from None


def _series(data: Any) -> list[Series]:
    result = data["result"]
    if data["resultType"] == "scalar":
        result = [{"metric": {}, "value": result}]
    return [_one(each["metric"], each.get("values") or [each["value"]]) for each in result]


def _one(labels: Mapping[str, str], samples: list[tuple[float, str]]) -> Series:
    times = np.array([moment for moment, _ in samples], np.float64)
    return Series(labels, times, np.array([float(value) for _, value in samples], np.float64))
