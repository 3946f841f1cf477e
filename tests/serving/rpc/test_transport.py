"""Limits and age of connections, and warnings about the address."""

import contextlib
import resource
import socket
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.config import Config
from speakerlens.serving.errors import StartupError
from speakerlens.serving.rpc.channels import MAX_STREAMS, exposure, fitting_connections
from speakerlens.serving.rpc.interceptor import MAX_BUILTIN_BYTES
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice

FILE = Path("file.pem")
TLS = Config(tls_certificate=FILE, tls_key=FILE)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_the_loopback_needs_no_warning(host: str) -> None:
    assert exposure(Config(host=host)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", "127.example.org"])  # noqa: S104
def test_other_addresses_are_warned_about(host: str) -> None:
    assert exposure(TLS.model_copy(update={"host": host, "tokens": FILE})) is None
    assert exposure(TLS.model_copy(update={"host": host, "tls_client_ca": FILE})) is None
    plain, open_to_all = exposure(Config(host=host, tokens=FILE)), exposure(TLS.model_copy(update={"host": host}))
    assert plain is not None
    assert plain.startswith(f"gRPC listens on {host} without TLS, ")
    assert "everyone" not in plain
    assert open_to_all == f"gRPC listens on {host} for everyone who can reach it (--tokens, or --tls-client-ca)"


def test_an_insecure_address_logs_one_warning(toy_bundles: Path) -> None:
    with ServerProcess(toy_bundles, "--host=0.0.0.0") as server:
        lines = [line for line in server.log.splitlines() if " WARNING " in line]
        assert len(lines) == 1
        assert "gRPC listens on 0.0.0.0 without TLS, so that audio" in lines[0]
        assert "and for everyone who can reach it" in lines[0]


def limits(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[int]:
    """Pretend these limits of open files; return the list of soft limits that are set."""
    chosen: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: chosen.append(pair[0]))
    return chosen


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "fitting"),
    [
        (1024, 4096, [1280], 1024),
        (4096, 4096, [], 1024),
        (1024, resource.RLIM_INFINITY, [1280], 1024),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, [], 1024),
        (512, 1024, [1024], 768),
        (1024, 1024, [1024], 768),
    ],
)
def test_the_limit_of_open_files_is_raised_for_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    soft: int, hard: int, raised: list[int], fitting: int,
) -> None:  # fmt: skip
    chosen = limits(monkeypatch, soft, hard)
    assert fitting_connections(1024) == fitting
    assert chosen == raised
    assert ("--max-connections 1024 needs" in caplog.text) == (fitting < 1024)


def test_too_few_open_files_are_a_startup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, 64, 128)
    with pytest.raises(StartupError, match="the limit of open files is 128"):
        fitting_connections(1024)


def test_idle_connections_leave_room_for_the_rest(toy_bundles: Path, tmp_path: Path) -> None:
    """More idle connections than files may be open: scrapes, enrolment and open channels go on."""
    limited = ("sh", "-c", 'ulimit -n 400 && exec "$@"', "sh")
    with ServerProcess(toy_bundles, f"--speakers={tmp_path / 'speakers.db'}", within=limited) as server:
        server.wait_for_log("at most 144 connections are taken")
        host, _, port = server.ready["grpc"].rpartition(":")
        assert server.status() == "SERVING"
        with contextlib.ExitStack() as stack:
            for _ in range(450):
                stack.enter_context(socket.create_connection((host, int(port)), 10))
            assert server.metrics()["process_open_fds"] < 400
            request = pb.EnrollRequest(speaker="anna", utterances=[raw(voice(1.0))])
            assert server.stub.Enroll(request, timeout=CALL_SECONDS).speaker.speaker == "anna"


def test_calls_beyond_a_connections_limit_wait_at_the_client(toy_server: ServerProcess) -> None:
    with grpc.insecure_channel(toy_server.ready["grpc"]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watching = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(MAX_STREAMS)]
        for each in watching:
            next(each)
        check = health.Check.future(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
        with pytest.raises(grpc.FutureTimeoutError):
            check.result(0.2)
        watching[0].cancel()
        assert check.result().status == health_pb2.HealthCheckResponse.SERVING
        for each in watching:
            each.cancel()


def test_an_old_connection_is_replaced_without_failing_calls(toy_bundles: Path) -> None:
    """A call longer than the connection's age is finished on the old connection."""
    replaced = threading.Event()
    connected = threading.Event()

    def changed(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            connected.set()
        elif connected.is_set():
            replaced.set()

    with ServerProcess(toy_bundles, "--connection-age-seconds=0.5") as server:
        server.channel.subscribe(changed)
        slow_audio = pb.IdentifyRequest(audio=raw(voice(toy.SLOW_SECONDS + 6)), models=[pb.ModelSelector(variant="da")])
        slow = server.stub.Identify.future(slow_audio, timeout=CALL_SECONDS)
        assert replaced.wait(30)
        for _ in range(50):
            assert server.stub.ListModels(pb.ListModelsRequest(), timeout=CALL_SECONDS).models
        assert slow.result().answers
        server.channel.unsubscribe(changed)


def test_compressed_messages_are_refused_without_unpacking(toy_server: ServerProcess) -> None:
    """A few KB on the wire would become as much as the largest message, before any token is asked for."""
    before = toy_server.metrics()["process_resident_memory_bytes"]
    request = health_pb2.HealthCheckRequest(service="x" * (8 * 2**20))
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with grpc.insecure_channel(toy_server.ready["grpc"], compression=compression) as channel:
            calls = [health_pb2_grpc.HealthStub(channel).Check.future(request, timeout=CALL_SECONDS) for _ in range(4)]
            assert {call.code() for call in calls} == {grpc.StatusCode.UNIMPLEMENTED}
    assert toy_server.metrics()["process_resident_memory_bytes"] - before < 60e6
    assert toy_server.status() == "SERVING"


def test_health_and_reflection_take_small_messages_only(toy_server: ServerProcess) -> None:
    large = "x" * (MAX_BUILTIN_BYTES + 1)
    reflect = reflection_pb2_grpc.ServerReflectionStub(toy_server.channel).ServerReflectionInfo
    question = reflection_pb2.ServerReflectionRequest(file_containing_symbol=large)
    for call in (
        lambda: toy_server.status(large),
        lambda: next(toy_server.health.Watch(health_pb2.HealthCheckRequest(service=large), timeout=CALL_SECONDS)),
        lambda: next(reflect(iter([question]), timeout=CALL_SECONDS)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"at most {MAX_BUILTIN_BYTES} bytes" in (caught.value.details() or "")
