"""Tracing, off by default: opens `serving.rpc.spans`, which needs the extra `otel`."""

from collections.abc import Collection
from typing import Protocol
from urllib.parse import urlsplit

import grpc

from speakerlens.serving.config import Config
from speakerlens.serving.errors import StartupError


class Tracing(Protocol):
    """Something that watches calls."""

    @property
    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """Stands outside every other."""

    async def close(self) -> None:
        """Sends what is left, within seconds."""


def tracing_of(config: Config, services: Collection[str]) -> Tracing | None:
    """Tracing of the calls of these services, to the collector that the configuration names, if any.

    Raises:
        StartupError: the extra is not installed, or the collector's address makes no sense.
    """
    if config.trace_endpoint is None:
        return None
    address = urlsplit(config.trace_endpoint)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise StartupError(
            f"--trace-endpoint {config.trace_endpoint}: give http://HOST:PORT, or https:// for TLS, "
            "of an OTLP collector (gRPC, usually port 4317)"
        )
    try:
        from speakerlens.serving.rpc.spans import Spans  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise StartupError(
            f'--trace-endpoint needs OpenTelemetry ({error}): install it with pip install "speakerlens[otel]"'
        ) from error
    return Spans(config.trace_endpoint, services)
