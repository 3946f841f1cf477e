"""Spans, as a collector receives them."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice
from tests.serving.startup import failing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
IDENTIFY = "speakerlens.v1.SpeakerIdentification/Identify"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.service = ""
        self._arrived = threading.Condition()

    def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:  # noqa: N802
        with self._arrived:
            for resource in request.resource_spans:
                names = {each.key: each.value.string_value for each in resource.resource.attributes}
                self.service = names["service.name"]
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait(self, condition: Callable[[list[Span]], bool]) -> list[Span]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: condition(self.spans), 30), self.spans
            return list(self.spans)


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


def request(scale: float = 1.0) -> pb.IdentifyRequest:
    return pb.IdentifyRequest(audio=raw(voice(1.0) * scale), models=[pb.ModelSelector(variant="da")])


def test_a_call_and_its_phases_are_below_the_clients_span(toy_bundles: Path, collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    with ServerProcess(toy_bundles, f"--trace-endpoint={endpoint}") as server:
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "traced-1"))
        began = time.time_ns()
        server.stub.Identify(request(), metadata=metadata, timeout=CALL_SECONDS)
        server.status()
    spans = kept.wait(lambda spans: len(spans) >= 5)
    assert kept.service == "speakerlens"
    assert sorted(span.name for span in spans) == ["decode", "encode", "inference", "queue", IDENTIFY]
    call = next(span for span in spans if span.name == IDENTIFY)
    assert call.kind == Span.SPAN_KIND_SERVER
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(call) == {
        "rpc.system": "grpc",
        "rpc.service": "speakerlens.v1.SpeakerIdentification",
        "rpc.method": "Identify",
        "rpc.grpc.status_code": 0,
        "speakerlens.request_id": "traced-1",
        "speakerlens.variant": "da",
    }
    phases = [next(span for span in spans if span.name == name) for name in ("decode", "queue", "inference", "encode")]
    assert all(span.parent_span_id == call.span_id and span.trace_id == call.trace_id for span in phases)
    times = [time for span in phases for time in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert times == sorted(times)
    assert began - 1e9 < times[0] < times[-1]
    assert phases[2].end_time_unix_nano > phases[2].start_time_unix_nano


def test_spans_have_the_status_and_follow_sampling(
    toy_bundles: Path, collector: tuple[Collector, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only calls within a sampled trace are recorded; a caller's mistake is not an error of the server's span."""
    kept, endpoint = collector
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with ServerProcess(toy_bundles, f"--trace-endpoint={endpoint}") as server:
        server.identify(request())
        server.stub.Identify(request(), metadata=(("traceparent", f"00-{TRACE}-{PARENT}-00"),), timeout=CALL_SECONDS)
        for scale, code in ((0.0, grpc.StatusCode.INVALID_ARGUMENT), (20.0, grpc.StatusCode.INTERNAL)):
            with pytest.raises(grpc.RpcError) as caught:
                metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
                server.stub.Identify(request(scale), metadata=metadata, timeout=CALL_SECONDS)
            assert caught.value.code() is code
    calls = kept.wait(lambda spans: sum(span.name == IDENTIFY for span in spans) >= 2)
    found = {attributes(span)["rpc.grpc.status_code"]: span.status.code for span in calls if span.name == IDENTIFY}
    assert found == {3: Status.STATUS_CODE_UNSET, 13: Status.STATUS_CODE_ERROR}


def test_a_missing_collector_delays_nothing(toy_bundles: Path) -> None:
    with ServerProcess(toy_bundles, "--trace-endpoint=http://127.0.0.1:9") as server:
        for _ in range(20):
            server.identify(request())
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10


def test_an_invalid_endpoint_is_a_startup_error(toy_bundles: Path, tmp_path: Path) -> None:
    text = failing("--bundles", str(toy_bundles), "--trace-endpoint=collector:4317")
    assert text.startswith("--trace-endpoint collector:4317: give http://HOST:PORT")


def test_tracing_without_the_extra_is_refused(toy_bundles: Path, tmp_path: Path) -> None:
    """Without --trace-endpoint, OpenTelemetry is not imported."""
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('not here')", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "serving", "--bundles", str(toy_bundles), "--port=0", "--metrics-port=0"]
    environment = {**os.environ, "PYTHONPATH": path}
    asked = subprocess.run(
        [*command, "--trace-endpoint=http://127.0.0.1:9"],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    assert asked.returncode == 1
    assert asked.stderr == (
        'error: --trace-endpoint needs OpenTelemetry (not here): install it with pip install "speakerlens[otel]"\n'
    )
    code = (
        "import speakerlens.serving.server, sys; print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    plain = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    assert plain.stdout == "False\n"
