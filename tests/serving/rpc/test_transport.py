"""How connections are treated: streams, age, pings; and where the server listens."""

import threading
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.config import Config
from speakerlens.serving.rpc.channels import exposure
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice

FILE = Path("file.pem")
TLS = Config(tls_certificate=FILE, tls_key=FILE)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_the_loopback_is_safe(host: str) -> None:
    assert exposure(Config(host=host)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])  # noqa: S104
def test_what_is_unsafe_elsewhere(host: str) -> None:
    assert exposure(replace(TLS, host=host, tokens=FILE)) is None
    assert exposure(replace(TLS, host=host, tls_client_ca=FILE)) is None
    plain, open_to_all = exposure(Config(host=host, tokens=FILE)), exposure(replace(TLS, host=host))
    assert plain is not None
    assert plain.startswith(f"gRPC listens on {host} without TLS, ")
    assert "everybody" not in plain
    assert open_to_all == f"gRPC listens on {host} to everybody who reaches it (--tokens, or --tls-client-ca)"


def test_an_insecure_bind_is_one_line_of_warning(toy_bundles: Path) -> None:
    with ServerProcess(toy_bundles, "--host=0.0.0.0") as server:
        lines = [line for line in server.log.splitlines() if " WARNING " in line]
        assert len(lines) == 1
        assert "gRPC listens on 0.0.0.0 without TLS, so that audio" in lines[0]
        assert "and to everybody who reaches it" in lines[0]


def test_more_calls_than_a_connection_may_have_wait_at_the_client(toy_bundles: Path) -> None:
    with ServerProcess(toy_bundles, "--max-streams=1") as server:
        slow_audio = pb.IdentifyRequest(audio=raw(voice(toy.SLOW_SECONDS + 3)), models=[pb.ModelSelector(variant="da")])
        slow = server.stub.Identify.future(slow_audio, timeout=CALL_SECONDS)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        listing = server.stub.ListModels.future(pb.ListModelsRequest(), timeout=CALL_SECONDS)
        with pytest.raises(grpc.FutureTimeoutError):
            listing.result(0.2)
        assert not slow.done(), "the device was not busy: the test shows nothing"
        assert listing.result().models
        assert slow.done()


def test_an_old_connection_is_replaced_and_no_call_fails(toy_bundles: Path) -> None:
    """A call longer than the connection's age is finished on the old connection."""
    replaced = threading.Event()
    connected = threading.Event()

    def heard(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            connected.set()
        elif connected.is_set():
            replaced.set()

    with ServerProcess(toy_bundles, "--connection-age-seconds=0.5") as server:
        server.channel.subscribe(heard)
        slow_audio = pb.IdentifyRequest(audio=raw(voice(toy.SLOW_SECONDS + 6)), models=[pb.ModelSelector(variant="da")])
        slow = server.stub.Identify.future(slow_audio, timeout=CALL_SECONDS)
        assert replaced.wait(30)
        for _ in range(50):
            assert server.stub.ListModels(pb.ListModelsRequest(), timeout=CALL_SECONDS).models
        assert slow.result().answers
        server.channel.unsubscribe(heard)
