"""Create metrics under one prefix."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import prometheus_client as prometheus
from prometheus_client import Metric

from speakerlens.serving.metrics.http import MetricsServer

PREFIX = "speakerlens_"
# With its label well within OpenMetrics' limit of 128 characters per exemplar. Quotes and backslashes are excluded, as
# not every parser reads them correctly when escaped (prometheus_client's own does not).
EXEMPLAR_LABEL, EXEMPLAR_ID = "request_id", re.compile(r"[\w.:/+=@,~-]{1,64}", re.ASCII)

# Prometheus knows when a series started; `_created` samples would double the number of series.
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


class _Buckets(prometheus.Histogram):
    """A histogram of buckets only: OpenMetrics allows no sum with a negative bound, and no count without a sum.

    The client library omits only the sum, and its own parser then rejects the page.
    """

    def collect(self) -> Iterable[Metric]:
        """Yield the metric without its count, which the bucket up to infinity has too."""
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_count")]
            yield metric


class Page:
    """Creates metrics on a registry of its own.

    Args:
        exemplars: whether histograms keep the request id of the last value in each bucket.
    """

    def __init__(self, exemplars: bool = False) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._exemplars = exemplars

    def counter(self, name: str, about: str, *labels: str) -> prometheus.Counter:
        """Return a new counter; its samples end in `_total`."""
        return prometheus.Counter(PREFIX + name, about, labels, registry=self.registry)

    def gauge(self, name: str, about: str, *labels: str) -> prometheus.Gauge:
        """Return a new gauge."""
        return prometheus.Gauge(PREFIX + name, about, labels, registry=self.registry)

    def histogram(self, name: str, about: str, buckets: Sequence[float], *labels: str) -> prometheus.Histogram:
        """Return a new histogram; if a bound is negative, without sum and count."""
        kind = _Buckets if buckets[0] < 0 else prometheus.Histogram
        return kind(PREFIX + name, about, labels, buckets=buckets, registry=self.registry)

    def observe(self, histogram: prometheus.Histogram, value: float, request_id: str | None = None) -> None:
        """Count a value, with the request id as exemplar if they are enabled; NaN is ignored."""
        if math.isnan(value):
            return
        wanted = self._exemplars and request_id is not None and EXEMPLAR_ID.fullmatch(request_id)
        histogram.observe(value, {EXEMPLAR_LABEL: request_id} if wanted and request_id else None)

    def application(self) -> Any:
        """Return the page as a WSGI application."""
        return prometheus.make_wsgi_app(self.registry)

    def serve(self, host: str, port: int, application: Any = None) -> int:
        """Serve the metrics over HTTP from threads of their own, and return the port.

        Args:
            host: address to bind.
            port: 0 is chosen by the system.
            application: pages to serve; None: the metrics only.

        Raises:
            OSError: the address cannot be bound.
        """
        server = MetricsServer(host, port, application or self.application())
        server.start()
        return int(server.server_port)


@dataclass(frozen=True)
class QueueMetrics:
    """The metrics of one variant's queue for one kind of answer; the batcher's observer."""

    depth: prometheus.Gauge
    size: prometheus.Histogram
    seconds: prometheus.Histogram

    def record_waiting(self, change: int) -> None:
        """Change the depth of the queue."""
        self.depth.inc(change)

    def record_batch(self, size: int, seconds: float) -> None:
        """Count a batch of `size` that took `seconds` on the device."""
        self.size.observe(size)
        self.seconds.observe(seconds)
