"""Traces with OpenTelemetry (the extra `otel`): one span per call, and one below it for each of its phases.

Names and attributes follow OpenTelemetry's conventions for gRPC servers, plus the request's id and variant.
OpenTelemetry's own gRPC instrumentation is not used: it takes every streaming handler for a generator, and leaves the
status OK on the span of a call that was cancelled or ran into its deadline.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import grpc

from speakerlens.serving.context import CallContext
from speakerlens.serving.errors import StartupError

FLUSH_SECONDS = 2.0
# Statuses that are the server's errors; the others leave a server span's status unset.
ERRORS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


class Tracing:
    """Sends spans to a collector by OTLP over gRPC, in the background.

    Args:
        endpoint: the collector, http://HOST:PORT or https://HOST:PORT.

    Raises:
        StartupError: the extra is not installed, or the endpoint is not such an address.
    """

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise StartupError(
                f"--trace-endpoint {endpoint}: give http://HOST:PORT, or https:// for TLS, "
                "of an OTLP collector (gRPC, usually port 4317)"
            )
        try:
            from opentelemetry import trace  # noqa: PLC0415  (an extra)
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415
        except ImportError as error:
            raise StartupError(
                f'--trace-endpoint needs OpenTelemetry ({error}): install it with pip install "speakerlens[otel]"'
            ) from error
        self._api = trace
        self._parent = TraceContextTextMapPropagator().extract
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "speakerlens"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("speakerlens")

    def begin(self, service: str, call: CallContext, metadata: Any) -> Callable[[], None]:
        """Start the span of a call, below the caller's span (W3C traceparent); return what ends it with its status."""
        carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{service}/{call.method}",
            self._parent(carrier),
            self._api.SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": call.method},
        )
        below = self._api.set_span_in_context(span)

        def add_phases(phases: Mapping[str, float]) -> None:
            begin = time.time_ns() - sum(map(_nanoseconds, phases.values()))
            for phase, seconds in phases.items():
                child = self._tracer.start_span(phase, below, start_time=begin)
                begin += _nanoseconds(seconds)
                child.end(begin)

        def end() -> None:
            number: Any = grpc.StatusCode[call.status].value  # the number and a description
            span.set_attributes(
                {
                    "rpc.grpc.status_code": number[0],
                    "speakerlens.request_id": call.id,
                    "speakerlens.variant": call.variant,
                }
            )
            if call.status in ERRORS:
                span.set_status(self._api.StatusCode.ERROR, call.status)
            span.end()

        call.report_phases = add_phases
        return end

    async def close(self) -> None:
        """Send the remaining spans, for a limited time where the collector does not answer."""
        flushing = asyncio.create_task(asyncio.to_thread(self._provider.force_flush))
        await asyncio.wait({flushing}, timeout=FLUSH_SECONDS)
        # The exporter would retry for longer than a stop may take.
        self._exporter.shutdown()
        await flushing


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
