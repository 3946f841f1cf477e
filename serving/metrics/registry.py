"""The page that metrics stand on: makes them under one prefix, and serves them over HTTP."""

import math
import re
from collections.abc import Iterable, Sequence

import prometheus_client as prometheus
from prometheus_client import Metric

PREFIX = "speakerlens_"
# With its label well within the 128 characters that OpenMetrics allows to an exemplar. A caller's id may hold quotes
# and backslashes; they would be escaped, but not every parser reads that right (prometheus_client's own does not).
EXEMPLAR_LABEL, EXEMPLAR_ID = "request_id", re.compile(r"[\w.:/+=@,~-]{1,64}", re.ASCII)

# When a series began is known to Prometheus anyway, and would double the number of gauges on the page.
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


class _Buckets(prometheus.Histogram):
    """A histogram of buckets alone: OpenMetrics allows no sum beside a negative bound, and no count without a sum.

    The client library leaves out the sum only, and then its own parser, which others scrape with, refuses the page.
    """

    def collect(self) -> Iterable[Metric]:
        """The samples that may stand on the page; the bucket up to infinity has the count."""
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_count")]
            yield metric


class Page:
    """Makes metrics on a registry of its own.

    Args:
        exemplars: whether histograms keep the id of the last request of each bucket.
    """

    def __init__(self, exemplars: bool = False) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._exemplars = exemplars

    def counter(self, name: str, about: str, *labels: str) -> prometheus.Counter:
        """What only rises; its samples end in `_total`."""
        return prometheus.Counter(PREFIX + name, about, labels, registry=self.registry)

    def gauge(self, name: str, about: str, *labels: str) -> prometheus.Gauge:
        """What rises and falls."""
        return prometheus.Gauge(PREFIX + name, about, labels, registry=self.registry)

    def histogram(self, name: str, about: str, buckets: Sequence[float], *labels: str) -> prometheus.Histogram:
        """How values are distributed; where a bucket's bound is negative, without sum and count."""
        kind = _Buckets if buckets[0] < 0 else prometheus.Histogram
        return kind(PREFIX + name, about, labels, buckets=buckets, registry=self.registry)

    def observe(self, histogram: prometheus.Histogram, value: float, request_id: str | None = None) -> None:
        """Counts a value, and keeps the request's id where exemplars are wanted; what could not be told is left out."""
        if math.isnan(value):
            return
        wanted = self._exemplars and request_id is not None and EXEMPLAR_ID.fullmatch(request_id)
        histogram.observe(value, {EXEMPLAR_LABEL: request_id} if wanted and request_id else None)

    def serve(self, host: str, port: int) -> int:
        """Serves the page over HTTP from threads of its own, and returns the port.

        Raises:
            OSError: the address is not to be had.
        """
        server, _ = prometheus.start_http_server(port, host, registry=self.registry)
        return int(server.server_port)
