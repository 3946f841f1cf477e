"""Spans of OpenTelemetry: one for each call, whose parent is the caller's (W3C traceparent), and one for each phase.

Names and attributes are those of OpenTelemetry's conventions for gRPC servers; beside them stand the request's id and
its variant. Spans go to a collector by OTLP over gRPC, in the background; a collector that is not there costs nothing
but a line of the log.
"""

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from speakerlens.serving.context import current_context
from speakerlens.serving.rpc.interceptor import HANDLERS

FLUSH_SECONDS = 2.0
# Errors of the server; those of the caller leave a server's span in peace.
FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


class Spans:
    """Watches calls, and sends their spans.

    Args:
        endpoint: of the collector: http://HOST:PORT or https://HOST:PORT.
        services: full names of the services that are watched.
    """

    def __init__(self, endpoint: str, services: Collection[str]) -> None:
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "speakerlens"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self.interceptor = _Interceptor(self._provider.get_tracer("speakerlens"), frozenset(services))

    async def close(self) -> None:
        """Sends what is left; gives up where the collector does not answer."""
        flushing = asyncio.create_task(asyncio.to_thread(self._provider.force_flush))
        await asyncio.wait({flushing}, timeout=FLUSH_SECONDS)
        # It would go on trying for longer than an operator waits for a stop.
        self._exporter.shutdown()
        await flushing


class _Interceptor(grpc.aio.ServerInterceptor):
    def __init__(self, tracer: trace.Tracer, services: frozenset[str]) -> None:
        self._tracer = tracer
        self._services = services

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.removeprefix("/").rpartition("/")
        if handler is None or service not in self._services:
            return handler
        parent = TraceContextTextMapPropagator().extract(_texts(handler_call_details.invocation_metadata))
        # CallInterceptor's handlers are coroutines, also where they stream.
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def traced(incoming: Any, context: Any) -> Any:
            span = self._tracer.start_span(
                f"{service}/{method}",
                parent,
                trace.SpanKind.SERVER,
                {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
            )
            current_context.get().report_phases = _Phases(self._tracer, span)
            try:
                return await behaviour(incoming, context)
            finally:
                _describe(span)
                span.end()

        return HANDLERS[handler.request_streaming, handler.response_streaming](traced)


class _Phases:
    """Hears of a call's phases, and makes spans of them afterwards."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._context = trace.set_span_in_context(span)

    def __call__(self, phases: Mapping[str, float]) -> None:
        begin = time.time_ns() - sum(map(_nanoseconds, phases.values()))
        for phase, seconds in phases.items():
            span = self._tracer.start_span(phase, self._context, start_time=begin)
            begin += _nanoseconds(seconds)
            span.end(begin)


def _describe(span: trace.Span) -> None:
    """What `CallInterceptor` found out about the call, which ran in this task."""
    call = current_context.get()
    code: Any = grpc.StatusCode[call.status].value  # the number and its name
    span.set_attributes(
        {
            "rpc.grpc.status_code": code[0],
            "speakerlens.request_id": call.id,
            "speakerlens.variant": call.variant,
        }
    )
    if call.status in FAULTS:
        span.set_status(trace.StatusCode.ERROR, call.status)


def _texts(metadata: Any) -> dict[str, str]:
    return {key: value for key, value in metadata or () if isinstance(value, str)}


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
