"""How a call is counted, whatever it asks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import grpc
import pytest

from speakerlens.serving.context import variant_label
from speakerlens.serving.engine.admission import Admission
from speakerlens.serving.errors import Reason, ResourceExhaustedError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.rpc.interceptor import CallGate, CallInterceptor
from speakerlens.serving.rpc.transfer import MessageTransfer


async def message() -> AsyncIterator[bytes]:
    yield b""


async def surrounded(behaviour: Any, metrics: Metrics) -> Any:
    """A unary method called Identify, as the server surrounds it."""

    async def continuation(_: object) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return grpc.unary_unary_rpc_method_handler(behaviour, request_deserializer=bytes, response_serializer=bytes)

    gate = CallGate()
    gate.closed = None
    interceptor = CallInterceptor(("service",), gate, Admission(9, 1), metrics, MessageTransfer(60, 2**20, 2**20))
    details = mock.Mock(method="/service/Identify", invocation_metadata=())
    return (await interceptor.intercept_service(continuation, details)).stream_unary


def test_labels_of_calls() -> None:
    assert variant_label([]) == "_none"
    assert variant_label(["da"]) == variant_label(["da", "da"]) == "da"
    assert variant_label(["da", "clean"]) == "_several"


@pytest.mark.parametrize(
    ("remaining", "code", "rejections"), [(0.0, "DEADLINE_EXCEEDED", 1), (5.0, "CANCELLED", 0), (None, "CANCELLED", 0)]
)
def test_a_call_that_ends_at_its_deadline_is_a_rejection(remaining: float | None, code: str, rejections: int) -> None:
    """gRPC cancels the handler of a call whose deadline has passed, as it does when the caller cancels."""

    async def ends(*_: object) -> None:
        raise asyncio.CancelledError

    async def call(metrics: Metrics) -> None:
        context = mock.Mock(time_remaining=lambda: remaining, invocation_metadata=tuple)
        with pytest.raises(asyncio.CancelledError):
            await (await surrounded(ends, metrics))(message(), context)

    metrics = Metrics()
    asyncio.run(call(metrics))
    value = metrics.registry.get_sample_value
    labels = {"method": "Identify", "variant": "_none", "code": code}
    assert value("speakerlens_requests_total", labels) == 1
    assert value("speakerlens_rejections_total", {"reason": "deadline"}) == rejections


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_counted(reason: Reason) -> None:
    """Whatever raises it; which requests are refused for which reason is for other tests."""
    metrics = Metrics()
    value = metrics.registry.get_sample_value
    assert value("speakerlens_rejections_total", {"reason": reason}) == 0

    async def refuses(*_: object) -> None:
        raise ResourceExhaustedError(reason, "no")

    async def run() -> None:
        context = mock.Mock(invocation_metadata=tuple, abort=mock.AsyncMock(), time_remaining=lambda: None)
        await (await surrounded(refuses, metrics))(message(), context)

    asyncio.run(run())
    assert value("speakerlens_rejections_total", {"reason": reason}) == 1
    labels = {"method": "Identify", "variant": "_none", "code": "RESOURCE_EXHAUSTED"}
    assert value("speakerlens_requests_total", labels) == 1
