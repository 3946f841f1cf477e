"""Three real servers and the product's client: one is killed, then another one is stopped."""

import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from numpy.typing import NDArray

from speakerlens import ClientError, ServerUnavailableError, SpeakerClient, StreamOptions, stream_requests
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice
from tests.serving.test_restart import free_port

CALLERS = 6
LAME_DUCK = "--lame-duck-seconds=0.5"
RATE = 16_000
# Between two calls of a caller, so that the machine is not the limit.
PAUSE_SECONDS = 0.02


class Traffic:
    """Callers that identify without pause, and one that enrols one speaker after the other."""

    def __init__(self, client: SpeakerClient) -> None:
        self._client = client
        self._over = threading.Event()
        self._samples = voice(1.0)
        self.answered = 0
        self.failed: list[str] = []
        self.enrolled: list[str] = []
        self.lost: list[ClientError] = []

    def identify(self) -> None:
        while not self._over.is_set():
            try:
                self._client.identify(self._samples, rate=RATE, variants="v")
            except ClientError as error:
                self.failed.append(str(error))
            else:
                self.answered += 1
            time.sleep(PAUSE_SECONDS)

    def enroll(self) -> None:
        while not self._over.is_set():
            name = f"speaker-{len(self.enrolled) + len(self.lost)}"
            try:
                self._client.enroll(name, [self._samples], rate=RATE)
            except ClientError as error:
                self.lost.append(error)
            else:
                self.enrolled.append(name)
            time.sleep(PAUSE_SECONDS)

    def wait_for_more(self, count: int = 25) -> None:
        goal, deadline = self.answered + count, time.monotonic() + CALL_SECONDS
        while self.answered < goal:
            assert time.monotonic() < deadline, f"the callers get no answers: {self.failed[:3]}"
            time.sleep(0.01)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.identify, daemon=True) for _ in range(CALLERS)]
        threads.append(threading.Thread(target=self.enroll, daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            deadline = time.monotonic() + CALL_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in threads), "a call hangs"


def test_killed_and_stopped_servers_lose_no_call(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path / "bundles", "v", 1)
    ports = [free_port() for _ in range(3)]
    store = f"--speakers={tmp_path / 'speakers.db'}"

    servers = [ServerProcess(tmp_path / "bundles", f"--port={port}", store, LAME_DUCK, wait=False) for port in ports]
    for server in servers:
        server.wait_ready()
    try:
        with SpeakerClient([f"127.0.0.1:{port}" for port in ports], timeout=CALL_SECONDS) as client:
            traffic = Traffic(client)
            with traffic.running():
                traffic.wait_for_more()
                servers[0].process.send_signal(signal.SIGKILL)
                servers[0].wait()
                traffic.wait_for_more()
                lost_by_the_kill = list(traffic.lost)
                assert servers[1].stop() == 0
                traffic.wait_for_more()
            known = {speaker.speaker for speaker in client.speakers()}
    finally:
        for server in servers:
            server.stop()
            server.channel.close()
    assert traffic.failed == []
    # An enrolment may have run when its server was killed; so it is never sent again, and its caller is told.
    assert traffic.lost == lost_by_the_kill
    assert all(isinstance(error, ServerUnavailableError) for error in traffic.lost)
    assert len(lost_by_the_kill) <= 1
    assert set(traffic.enrolled) <= known
    received = sum(len(re.findall("method=Enroll ", server.log)) for server in servers)
    assert received <= len(traffic.enrolled) + len(traffic.lost)


def page(server: ServerProcess, path: str) -> int:
    try:
        with urllib.request.urlopen(server.ready["metrics"].replace("/metrics", path), timeout=CALL_SECONDS) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + CALL_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lame_duck_takes_calls_while_not_serving(toy_bundles: Path) -> None:
    """Then the drain: a connection without calls ends at once, one with a call when that is over."""
    silent = threading.Event()

    def chunks() -> Iterator[NDArray[np.float32]]:
        yield voice(1.0)
        silent.wait(CALL_SECONDS)

    with (
        ServerProcess(toy_bundles, "--lame-duck-seconds=3", f"--drain-seconds={CALL_SECONDS}") as server,
        SpeakerClient(server.ready["grpc"], balancing=None) as idle,
        ThreadPoolExecutor(1) as pool,
    ):
        watcher = server.health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(watcher).status == health_pb2.HealthCheckResponse.SERVING
        live = server.stub.IdentifyStream(stream_requests.stream(StreamOptions(RATE, variants="da")).messages(chunks()))
        busy = pool.submit(list, live)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        idle.models()
        server.process.send_signal(signal.SIGTERM)
        assert next(watcher).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not idle.is_serving()
        assert (page(server, "/livez"), page(server, "/readyz")) == (200, 503)
        idle.models()
        assert server.identify(pb.IdentifyRequest(audio=raw(voice(1.0)), top_k=1)).answers
        server.wait_for_log("draining")
        until(lambda: "Connection refused" in _error(idle))
        assert page(server, "/livez") == 200
        with pytest.raises(grpc.RpcError, match="draining"):  # on the connection of the stream
            server.identify(pb.IdentifyRequest(audio=raw(voice(1.0)), top_k=1))
        silent.set()
        assert busy.result(CALL_SECONDS)[-1].whole.answers
        assert server.wait() == 0


def _error(client: SpeakerClient) -> str:
    with pytest.raises(ServerUnavailableError) as caught:
        client.models()
    return str(caught.value)


def test_loading_server_is_live_and_not_ready(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "slow", 1, slow_seconds=2)
    port = free_port()
    server = ServerProcess(tmp_path, f"--metrics-port={port}", "--lame-duck-seconds=60", wait=False)
    server.ready = {"metrics": f"http://127.0.0.1:{port}/metrics"}

    def states() -> tuple[int, int]:
        try:
            return page(server, "/livez"), page(server, "/readyz")
        except OSError:
            return 0, 0

    until(lambda: states() != (0, 0))
    assert states() == (200, 503)
    started = time.monotonic()
    assert server.stop() == 0, "a server that never served has no lame duck"
    assert time.monotonic() - started < 30
