"""A name of several servers: their addresses change, as those of pods do, and calls follow them."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from speakerlens import SpeakerClient
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import add_SpeakerIdentificationServicer_to_server

from .test_balancing import ANY_AUDIO, Counting

ADDRESS_RECORD, INTERNET = 1, 1
HEADER_BYTES = 12


class NameServer:
    """Answers every question for an IPv4 address with `addresses`."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                message, sender = self._socket.recvfrom(512)
            except OSError:
                return
            end = message.index(0, HEADER_BYTES)
            (kind,) = struct.unpack("!H", message[end + 1 : end + 3])
            # The name by its place in the message, type, class, seconds to keep, length.
            record = b"\xc0\x0c" + struct.pack("!HHIH", ADDRESS_RECORD, INTERNET, 0, 4)
            found = [record + socket.inet_aton(each) for each in self.addresses] if kind == ADDRESS_RECORD else []
            head = message[:2] + b"\x84\x00" + struct.pack("!HHHH", 1, len(found), 0, 0)
            self._socket.sendto(head + message[HEADER_BYTES : end + 5] + b"".join(found), sender)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def serving_at(host: str, port: int, servicer: Counting) -> Iterator[tuple[int, grpc.Server]]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_SpeakerIdentificationServicer_to_server(servicer, server)
    state = health.HealthServicer()
    state.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    bound = server.add_insecure_port(f"{host}:{port}")
    server.start()
    try:
        yield bound, server
    finally:
        server.stop(None).wait()


@pytest.fixture
def names() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.close()


def test_servers_behind_a_name_are_replaced_without_a_lost_call(names: NameServer) -> None:
    """gRPC by itself asks DNS every 30 s at most, and finds no server until then."""
    old, new = Counting(), Counting()
    with ExitStack() as stack:
        try:
            port, first = stack.enter_context(serving_at("127.0.0.2", 0, old))
            stack.enter_context(serving_at("127.0.0.3", port, new))
        except (OSError, RuntimeError):
            pytest.skip("this machine has only one loopback address")
        names.addresses = ["127.0.0.2"]
        with SpeakerClient(f"dns://127.0.0.1:{names.port}/speakers.test:{port}", timeout=20) as client:
            client.identify(ANY_AUDIO)
            names.addresses = ["127.0.0.3"]
            first.stop(None).wait()
            started = time.monotonic()
            for _ in range(3):
                client.identify(ANY_AUDIO)
            assert time.monotonic() - started < 15
    assert (old.calls, new.calls) == (1, 3)


def test_calls_are_spread_over_all_servers_of_a_name(names: NameServer) -> None:
    servers = Counting(), Counting()
    with ExitStack() as stack:
        try:
            port, _ = stack.enter_context(serving_at("127.0.0.2", 0, servers[0]))
            stack.enter_context(serving_at("127.0.0.3", port, servers[1]))
        except (OSError, RuntimeError):
            pytest.skip("this machine has only one loopback address")
        names.addresses = ["127.0.0.2", "127.0.0.3"]
        with SpeakerClient(f"dns://127.0.0.1:{names.port}/speakers.test:{port}", timeout=20) as client:
            connected = time.monotonic() + 20
            while not all(each.calls for each in servers) and time.monotonic() < connected:
                client.identify(ANY_AUDIO)
            before = [each.calls for each in servers]
            for _ in range(8):
                client.identify(ANY_AUDIO)
    calls = [each.calls - past for each, past in zip(servers, before, strict=True)]
    assert sum(calls) == 8
    assert min(calls) >= 2
