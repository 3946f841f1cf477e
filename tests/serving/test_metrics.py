"""The metrics page against known traffic."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import grpc
import pytest

from protos.speakerlens.v1 import identification_pb2 as pb
from serving.metrics import Metrics, variant_label
from serving.transport.rpc import CallInterceptor, Gate
from serving.transport.transfer import Transfers
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice


def test_labels_of_calls() -> None:
    assert variant_label([]) == "_none"
    assert variant_label(["da"]) == variant_label(["da", "da"]) == "da"
    assert variant_label(["da", "clean"]) == "_several"


@pytest.mark.parametrize(
    ("remaining", "code", "rejections"), [(0.0, "DEADLINE_EXCEEDED", 1), (5.0, "CANCELLED", 0), (None, "CANCELLED", 0)]
)
def test_a_call_that_dies_at_its_deadline_is_a_rejection(remaining: float | None, code: str, rejections: int) -> None:
    """gRPC cancels the handler of a call whose deadline has passed, as it does when the caller hangs up."""

    async def ends(*_: object) -> None:
        raise asyncio.CancelledError

    async def message() -> AsyncIterator[bytes]:
        yield b""

    async def continuation(_: object) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return grpc.unary_unary_rpc_method_handler(ends, request_deserializer=bytes, response_serializer=bytes)

    async def call(metrics: Metrics) -> None:
        gate = Gate()
        gate.closed = None
        interceptor = CallInterceptor(("service",), gate, metrics, mock.Mock(), Transfers(60, 2**20, 2**20))
        handler = await interceptor.intercept_service(continuation, mock.Mock(method="/service/Identify"))
        context = mock.Mock(time_remaining=lambda: remaining, invocation_metadata=tuple)
        with pytest.raises(asyncio.CancelledError):
            await handler.stream_stream(message(), context)

    metrics = Metrics()
    asyncio.run(call(metrics))
    value = metrics.registry.get_sample_value
    labels = {"method": "Identify", "variant": "_none", "code": code}
    assert value("speakerlens_requests_total", labels) == 1
    assert value("speakerlens_rejections_total", {"reason": "deadline"}) == rejections


def test_counters_after_known_traffic(toy_bundles: Path) -> None:
    def ask(server: ServerProcess, *names: str, **fields: object) -> None:
        models = [pb.ModelSelector(variant=name) for name in names]
        fields = {"audio": raw(voice(1.25)), **fields}
        server.identify(pb.IdentifyRequest(models=models, **fields))  # type: ignore[arg-type]

    with ServerProcess(toy_bundles) as server:
        before = server.metrics()
        for _ in range(3):
            ask(server, "clean")
        for _ in range(2):
            ask(server, "da", explain=pb.ExplainOptions())
        ask(server)
        server.stub.ListModels(pb.ListModelsRequest(), timeout=CALL_SECONDS)
        server.status()
        refusals: list[tuple[tuple[str, ...], dict[str, object]]] = [
            (("clean",), {"audio": raw(voice(0.1))}),
            (("clean",), {"audio": raw(voice(1.0) * 0)}),
            (("clean",), {"audio": raw(voice(1.0) * 0)}),
            (("no-such-variant",), {}),
            (("da",), {"top_k": -1}),
        ]
        for names, fields in refusals:
            with pytest.raises(grpc.RpcError):
                ask(server, *names, **fields)
        after = server.metrics()
        text = server.metrics_text()

    assert all(value == 0 for name, value in before.items() if name.startswith("speakerlens_rejections_total"))
    calls = {name: value for name, value in after.items() if name.startswith("speakerlens_requests_total")}
    assert calls == {
        'speakerlens_requests_total{code="OK",method="Identify",variant="clean"}': 3,
        'speakerlens_requests_total{code="OK",method="Identify",variant="da"}': 2,
        'speakerlens_requests_total{code="OK",method="Identify",variant="_several"}': 1,
        'speakerlens_requests_total{code="OK",method="ListModels",variant="_none"}': 1,
        'speakerlens_requests_total{code="INVALID_ARGUMENT",method="Identify",variant="clean"}': 3,
        'speakerlens_requests_total{code="NOT_FOUND",method="Identify",variant="_none"}': 1,
        'speakerlens_requests_total{code="INVALID_ARGUMENT",method="Identify",variant="da"}': 1,
    }
    rejections = {n: v for n, v in after.items() if n.startswith("speakerlens_rejections_total") and v}
    assert rejections == {
        'speakerlens_rejections_total{reason="too_short"}': 1,
        'speakerlens_rejections_total{reason="silent"}': 2,
        'speakerlens_rejections_total{reason="unknown_variant"}': 1,
        'speakerlens_rejections_total{reason="argument"}': 1,
    }
    answers = {n: v for n, v in after.items() if n.startswith("speakerlens_answers_total") and v}
    assert answers == {
        'speakerlens_answers_total{kind="predict",variant="clean"}': 4,
        'speakerlens_answers_total{kind="predict",variant="da"}': 1,
        'speakerlens_answers_total{kind="predict",variant="act-da"}': 1,
        'speakerlens_answers_total{kind="explain",variant="da"}': 2,
    }
    assert after["speakerlens_audio_seconds_total"] == pytest.approx(6 * 1.25)
    for phase in ("decode", "queue", "inference", "encode"):
        assert after[f'speakerlens_phase_duration_seconds_count{{phase="{phase}"}}'] == 6
    assert after['speakerlens_request_duration_seconds_count{method="Identify",variant="clean"}'] == 6
    assert after['speakerlens_batch_size_sum{kind="predict",variant="clean"}'] == 4
    assert after['speakerlens_batch_duration_seconds_count{kind="explain",variant="da"}'] == 2
    assert all(value == 0 for name, value in after.items() if name.startswith("speakerlens_queue_depth"))
    assert after["speakerlens_requests_in_flight"] == 0
    assert sum(name.startswith("speakerlens_model_info") for name in after) == 4
    assert any(n.startswith("speakerlens_engine_info") and 'provider="CPUExecutionProvider"' in n for n in after)
    assert "no-such-variant" not in text
    assert "speaker-0" not in text
