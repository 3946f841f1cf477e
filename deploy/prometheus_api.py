"""Query Prometheus over its HTTP API."""

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
    """One series: labels, times in seconds since 1970 (float64 [samples]), and values (float64 [samples])."""

    labels: Mapping[str, str]
    times: NDArray[np.float64]
    values: NDArray[np.float64]


class QueryError(Exception):
    """Prometheus refused the expression; the message is its own."""


class Prometheus:
    """A Prometheus at an address such as http://127.0.0.1:9090."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def query(self, expression: str, at: float | None = None) -> list[Series]:
        """Return the series of an instant query, one sample each, now or at a time in seconds since 1970.

        Raises:
            QueryError: the expression is wrong, or takes too long.
            OSError: Prometheus cannot be reached.
        """
        return _series(self.get("query", query=expression, **({} if at is None else {"time": at})))

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """Return the series of a range query, every `step` seconds from `start` to `end` (seconds since 1970).

        Raises:
            QueryError: the expression is wrong, or takes too long.
            OSError: Prometheus cannot be reached.
        """
        return _series(self.get("query_range", query=expression, start=start, end=end, step=step))

    def metrics(self) -> set[str]:
        """Return the names of all stored metrics."""
        return set(self.get("label/__name__/values"))

    def get(self, path: str, **fields: object) -> Any:
        """Return the field `data` of the answer to a path under /api/v1/.

        Raises:
            QueryError: the request is refused.
            OSError: Prometheus cannot be reached.
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
