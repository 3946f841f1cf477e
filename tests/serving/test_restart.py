"""Restarts under load, with real servers and clients that retry on UNAVAILABLE only."""

import itertools
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice

CALLERS = 6
# Calls go to servers whose health is SERVING, and refused calls are retried elsewhere.
RETRY = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
    "methodConfig": [
        {
            "name": [{"service": "speakerlens.v1.SpeakerIdentification"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
IMPATIENT = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]

CallContext = Callable[[SpeakerIdentificationStub, pb.IdentifyRequest, str], pb.IdentifyResponse]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def once(stub: SpeakerIdentificationStub, request: pb.IdentifyRequest, name: str) -> pb.IdentifyResponse:
    """A call whose retries are the channel's matter."""
    return stub.Identify(request, timeout=CALL_SECONDS, metadata=(("x-request-id", name),))


def until_available(stub: SpeakerIdentificationStub, request: pb.IdentifyRequest, name: str) -> pb.IdentifyResponse:
    deadline = time.monotonic() + CALL_SECONDS
    while True:
        try:
            return once(stub, request, name)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


@contextmanager
def traffic(target: str, options: list[tuple[str, object]], call: CallContext) -> Iterator[Counter[str]]:
    """Callers who ask without pause, each call under a name of its own; gives the names that were answered well."""
    over, answered, failed = threading.Event(), Counter[str](), list[str]()
    numbers = itertools.count()
    samples = voice(1.0)
    expected = float(toy.expected(toy.weights(0), samples)["logits"].max())
    request = pb.IdentifyRequest(audio=raw(samples), top_k=1)

    def ask(stub: SpeakerIdentificationStub) -> None:
        while not over.is_set():
            name = f"call-{next(numbers)}"
            try:
                answer = call(stub, request, name)
            except grpc.RpcError as error:
                failed.append(f"{name}: {error.code()} {error.details()}")
                continue
            if answer.answers[0].speakers[0].logit == pytest.approx(expected, rel=1e-4):
                answered[name] += 1

    with grpc.insecure_channel(target, options=[*IMPATIENT, *options]) as channel:
        stub = SpeakerIdentificationStub(channel)
        callers = [threading.Thread(target=ask, args=(stub,)) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        try:
            yield answered
        finally:
            over.set()
            for caller in callers:
                caller.join(CALL_SECONDS)
    assert failed == []
    assert sorted(answered) == sorted(f"call-{number}" for number in range(next(numbers))), "a call got no answer"


def more(answered: Counter[str]) -> None:
    """Wait until 50 more calls are answered."""
    goal, deadline = len(answered) + 50, time.monotonic() + CALL_SECONDS
    while len(answered) < goal:
        assert time.monotonic() < deadline, "the callers get no answers"
        time.sleep(0.01)


def check_each_was_computed_once(answered: Counter[str], servers: list[ServerProcess]) -> None:
    computed = Counter(name for server in servers for name in re.findall(r"request=(call-\d+) .*code=OK", server.log))
    assert computed == answered


def test_a_rolling_restart_of_two_servers_loses_nothing(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "v", 1)
    ports = free_port(), free_port()
    servers = [ServerProcess(tmp_path, f"--port={port}") for port in ports]
    everyone = list(servers)
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    try:
        with traffic(target, [("grpc.service_config", json.dumps(RETRY))], once) as answered:
            for index, port in enumerate(ports):
                more(answered)
                assert servers[index].stop() == 0
                more(answered)
                servers[index] = ServerProcess(tmp_path, f"--port={port}")
                everyone.append(servers[index])
                servers[index].wait_for_metric(  # before the next one stops, the callers must have found this one
                    'speakerlens_requests_total{code="OK",method="Identify",variant="v"}', 20
                )
    finally:
        statuses = [server.stop() for server in servers]
    assert statuses == [0, 0]
    check_each_was_computed_once(answered, everyone)


def test_a_restart_on_the_same_port_loses_nothing(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "v", 1)
    port = free_port()
    servers = [ServerProcess(tmp_path, f"--port={port}")]
    try:
        with traffic(f"127.0.0.1:{port}", [("grpc.enable_retries", 0)], until_available) as answered:
            for _ in range(2):
                more(answered)
                assert servers[-1].stop() == 0
                servers.append(ServerProcess(tmp_path, f"--port={port}"))
            more(answered)
    finally:
        servers[-1].stop()
    check_each_was_computed_once(answered, servers)
