"""Metrics of the service: calls, answers, queues, models.

A call counts once: under its variant, under `_several` if it asks more than one, or under `_none` if it asks none or is
refused before its variants are known (no variant's name starts with an underscore). A message above gRPC's own limit
(`--max-message-bytes`) is refused before it reaches these counters.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import prometheus_client as prometheus

from speakerlens.decoder_pool import REASONS
from speakerlens.serving.bundle import VARIANT_NAME
from speakerlens.serving.context import NO_VARIANT
from speakerlens.serving.errors import Reason
from speakerlens.serving.metrics.registry import Page, QueueMetrics
from speakerlens.serving.metrics.robustness import Robustness
from speakerlens.serving.metrics.search import Search
from speakerlens.serving.metrics.store import LINES, Store

PHASES = ("decode", "queue", "inference", "encode")
# The usual statuses of a variant that fails; others appear with their first event.
FAILURES = ("INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE")
REBUILDS = ("ok", "failed")
LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ModelInfo(NamedTuple):
    """The labels of `model_info`, and the precision, of `model_precision`."""

    variant: str
    version: str
    code_revision: str
    training_data_digest: str
    precision: str


class Metrics:
    """All metrics of a server.

    Args:
        exemplars: whether histograms keep request ids.
    """

    def __init__(self, exemplars: bool = False) -> None:
        self.page = page = Page(exemplars)
        self.registry = page.registry
        self._refused: set[tuple[str, str]] = set()
        self.requests = page.counter("requests", "Finished calls, by gRPC status.", "method", "variant", "code")
        self.duration = page.histogram(
            "request_duration_seconds",
            "Time from the arrival of a call to its answer, for every status.",
            LATENCIES,
            "method",
            "variant",
        )
        self.phase = page.histogram(
            "phase_duration_seconds", "Time that an answered identification spent in each phase.", LATENCIES, "phase"
        )
        self.in_flight = page.gauge("requests_in_flight", "Calls in progress.")
        self.rejections = page.counter(
            "rejections", "Calls, and requests in a batch, refused for an error of the caller or for load.", "reason"
        )
        self.decoder_restarts = page.counter(
            "decoder_restarts", "Processes of the decoder that were ended for the file they decoded, by why.", "reason"
        )
        self.answers = page.counter(
            "answers", "Utterances answered, once per variant that answered.", "variant", "kind"
        )
        self.model_failures = page.counter(
            "model_failures",
            "Answers that a variant failed to give, alone or while others succeeded, by gRPC status.",
            "variant",
            "code",
        )
        self.audio = page.counter("audio_seconds", "Duration of the audio of answered identifications.")
        self.batch_size = page.histogram("batch_size", "Utterances computed together.", BATCH_SIZES, "variant", "kind")
        self.batch_duration = page.histogram(
            "batch_duration_seconds", "Time of a batch on the device.", LATENCIES, "variant", "kind"
        )
        self.queue_depth = page.gauge("queue_depth", "Utterances waiting for the device.", "variant", "kind")
        self.queue_capacity = page.gauge(
            "queue_capacity",
            "Utterances of one priority that may wait; more are refused.",
            "variant",
            "kind",
        )
        self.model_info = page.gauge(
            "model_info", "1 for each loaded model.", "variant", "version", "code_revision", "training_data_digest"
        )
        self.model_precision = page.gauge(
            "model_precision",
            "1 for each loaded model: the number format that its scores are computed in.",
            "variant",
            "version",
            "precision",
        )
        self.bundles_refused = page.gauge(
            "bundles_refused", "Bundles on disk that are not served, by what is wrong with them.", "variant", "reason"
        )
        self.bundles_scanned = page.gauge(
            "bundles_scan_timestamp_seconds",
            "When the bundles on disk were last scanned, in seconds since 1970.",
        )
        self.engine_info = page.gauge("engine_info", "1 for the engine in use.", "provider", "version")
        self.engine_instances = page.gauge("engine_instances", "Batches that are computed at the same time.")
        self.engine_fallback = page.gauge(
            "engine_fallback", "1 if models run on the CPU although CUDA or a driver of NVIDIA is installed."
        )
        self.engine_rebuilds = page.counter(
            "engine_rebuilds", "Attempts to reopen the engine of a variant after it broke.", "variant", "outcome"
        )
        self.certificate_expiry = page.gauge(
            "tls_certificate_expiry_timestamp_seconds",
            "When the server's certificate, or the first of its chain, expires, in seconds since 1970.",
            "file",
        )
        self.robustness = Robustness(page)
        self.search = Search(page)
        self.store = Store(page)
        prometheus.ProcessCollector(registry=self.registry)
        for reason in Reason:
            self.rejections.labels(reason)
        for phase in PHASES:
            self.phase.labels(phase)
        for why in REASONS:
            self.decoder_restarts.labels(why)

    def add_model(self, model: ModelInfo) -> None:
        """Show a loaded model, and start the counters of its variant at 0."""
        self.robustness.add_variant(model.variant)
        self.search.add_variant(model.variant)
        for outcome in REBUILDS:
            self.engine_rebuilds.labels(model.variant, outcome)
        for code in FAILURES:
            self.model_failures.labels(model.variant, code)
        self.model_info.labels(*model[:-1]).set(1)
        self.model_precision.labels(model.variant, model.version, model.precision).set(1)

    def remove_model(self, model: ModelInfo) -> None:
        """Remove a model that is no longer served; the counters of its variant remain."""
        self.model_info.remove(*model[:-1])
        self.model_precision.remove(model.variant, model.version, model.precision)
        self.search.remove_model(model.variant, model.version)

    def report_refused(self, refused: Mapping[tuple[str, str], int]) -> None:
        """Replace the numbers of refused bundles, by the variant in the folder's name and the fault."""
        counts = dict.fromkeys(self._refused, 0)
        for (variant, fault), count in refused.items():
            label = variant if VARIANT_NAME.fullmatch(variant) else NO_VARIANT, fault
            counts[label] = counts.get(label, 0) + count
        for (variant, fault), count in counts.items():
            self.bundles_refused.labels(variant, fault).set(count)
        self._refused = {label for label, count in counts.items() if count}
        self.bundles_scanned.set_to_current_time()

    def watch_expiry(self, expiry: Callable[[], float]) -> None:
        """Show what `expiry` returns, at every scrape, as the end of the server's certificate."""
        self.certificate_expiry.labels("certificate").set_function(expiry)

    def count_decoder_restart(self, reason: str) -> None:
        """Count a process of the decoder that was ended for a file."""
        self.decoder_restarts.labels(reason).inc()

    def count_journal(self, written: bool) -> None:
        """Count a line of the journal."""
        self.store.journal.labels(LINES[not written]).inc()

    def count_rebuild(self, variant: str, worked: bool) -> None:
        """Count an attempt to reopen an engine."""
        self.engine_rebuilds.labels(variant, REBUILDS[not worked]).inc()

    def queue(self, variant: str, kind: str, capacity: int) -> QueueMetrics:
        """Return the metrics of a queue in which `capacity` may wait; versions of a variant share them."""
        self.answers.labels(variant, kind)
        self.queue_capacity.labels(variant, kind).set(capacity)
        return QueueMetrics(
            self.queue_depth.labels(variant, kind),
            self.batch_size.labels(variant, kind),
            self.batch_duration.labels(variant, kind),
        )
