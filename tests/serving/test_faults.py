"""Faults around real server processes: killed clients and servers, a clock that jumps, scrapers that hang."""

import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.conftest import ROOT
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice

IN_FLIGHT = "speakerlens_requests_in_flight"
DAY = 86_400

CALLER = """
import sys
import grpc
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from tests.serving.harness import raw, voice
request = pb.IdentifyRequest(audio=raw(voice(float(sys.argv[2]))), models=[pb.ModelSelector(variant=sys.argv[3])])
SpeakerIdentificationStub(grpc.insecure_channel(sys.argv[1])).Identify(request)
"""

SPEAKER = """
import itertools
import sys
import time
import grpc
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from tests.serving.harness import talk

def live():
    models = [pb.ModelSelector(variant="clean")]
    yield pb.IdentifyStreamRequest(
        start=pb.StreamStart(format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=16_000, models=models)
    )
    sound = talk(10.0).tobytes()
    for _ in itertools.count():
        yield pb.IdentifyStreamRequest(samples=sound[:64_000])
        time.sleep(0.05)

for answer in SpeakerIdentificationStub(grpc.insecure_channel(sys.argv[1])).IdentifyStream(live()):
    print("answered", flush=True)
"""

# A wall clock with an offset in seconds that a file holds; other clocks are unchanged.
CLOCK = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long *offset;
__attribute__((constructor)) static void start(void) {
    offset = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, open(getenv("CLOCK_OFFSET"), O_RDONLY), 0);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += *offset;
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}
"""


def request(variant: str, seconds: float = 1.0) -> pb.IdentifyRequest:
    return pb.IdentifyRequest(audio=raw(voice(seconds)), models=[pb.ModelSelector(variant=variant)])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_killed_client_frees_its_place(toy_bundles: Path) -> None:
    """One client whose batch runs and one that waits: both calls are dropped, later ones answered."""
    with ServerProcess(toy_bundles, "--instances=1") as server:

        def caller(seconds: float, variant: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-c", CALLER, server.ready["grpc"], str(seconds), variant], cwd=ROOT
            )

        running = caller(toy.SLOW_SECONDS + 6, "da")
        server.wait_for_metric(IN_FLIGHT, 1)
        waiting = caller(1.0, "clean")
        server.wait_for_metric('speakerlens_queue_depth{kind="predict",variant="clean"}', 1)
        for process in (waiting, running):
            process.kill()
            assert process.wait(10) == -signal.SIGKILL, "it had its answer already: the test shows nothing"
        wait_until(lambda: server.metrics()[IN_FLIGHT] == 0, "the calls of the killed clients are still in progress")
        assert server.identify(request("clean")).answers
        page = server.metrics()
        for variant in ("clean", "da"):
            assert page[f'speakerlens_requests_total{{code="CANCELLED",method="Identify",variant="{variant}"}}'] == 1
        assert page['speakerlens_batch_size_sum{kind="predict",variant="clean"}'] == 1, "computed for the killed client"


def test_a_client_killed_during_a_stream_is_cancelled(toy_bundles: Path) -> None:
    """The stream ends, is counted once, and does not delay a stop."""
    with ServerProcess(toy_bundles, "--window-seconds=1") as server:
        process = subprocess.Popen(
            [sys.executable, "-c", SPEAKER, server.ready["grpc"]], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"answered\n"
        assert server.metrics()[IN_FLIGHT] == 1
        process.kill()
        assert process.wait(10) == -signal.SIGKILL, "it had ended by itself: the test shows nothing"
        process.stdout.close()
        wait_until(lambda: server.metrics()[IN_FLIGHT] == 0, "the stream of the killed client is still in progress")
        assert (
            server.metrics()['speakerlens_requests_total{code="CANCELLED",method="IdentifyStream",variant="clean"}']
            == 1
        )
        assert server.identify(request("clean")).answers
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 15, "it waited for the killed client"


def test_a_killed_server_is_replaced_on_the_same_channel(tmp_path: Path) -> None:
    """Waiting calls get UNAVAILABLE; the next server on the port answers over the same channel."""
    toy.write_bundle(tmp_path, "v", 1)
    first = ServerProcess(tmp_path)
    address = first.ready["grpc"]
    fast_reconnect = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    with grpc.insecure_channel(address, options=fast_reconnect) as channel:
        identify: grpc.UnaryUnaryMultiCallable[pb.IdentifyRequest, pb.IdentifyResponse] = channel.unary_unary(
            "/speakerlens.v1.SpeakerIdentification/Identify",
            request_serializer=pb.IdentifyRequest.SerializeToString,
            response_deserializer=pb.IdentifyResponse.FromString,
        )
        slow = identify.future(request("v", toy.SLOW_SECONDS + 6))
        first.wait_for_metric(IN_FLIGHT, 1)
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
        first.channel.close()
        assert slow.code() is grpc.StatusCode.UNAVAILABLE
        with ServerProcess(tmp_path, f"--port={address.rpartition(':')[2]}"):
            assert identify(request("v"), timeout=CALL_SECONDS, wait_for_ready=True).answers


def test_wall_clock_jumps_change_nothing(toy_bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day ahead and a day back, while calls wait, between calls, and while the server drains."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("bending the clock needs a C compiler and Linux")
    (tmp_path / "clock.c").write_text(CLOCK, encoding="utf-8")
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "clock.c"], check=True)

    def jump(seconds: int) -> None:
        with offset.open("r+b") as file:
            file.write(struct.pack("l", seconds))

    offset.write_bytes(struct.pack("l", 0))
    monkeypatch.setenv("CLOCK_OFFSET", str(offset))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    # The loader reads LD_PRELOAD at the start.
    server = ServerProcess(toy_bundles, "--watch=0.1", "--instances=1", fresh=True)
    monkeypatch.delenv("LD_PRELOAD")
    with server:
        for seconds in (DAY, -DAY):
            slow = server.stub.Identify.future(request("da", toy.SLOW_SECONDS + 2), timeout=CALL_SECONDS)
            server.wait_for_metric(IN_FLIGHT, 1)
            waiting = server.stub.Identify.future(request("clean"), timeout=CALL_SECONDS)
            hurried = server.stub.Identify.future(request("clean"), timeout=0.3)
            server.wait_for_metric(IN_FLIGHT, 2)
            jump(seconds)
            assert hurried.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert not slow.done(), "the device was not busy: the test shows nothing"
            assert slow.result().answers
            assert waiting.result().answers
            assert server.identify(request("clean"), timeout=5).answers
            looked = server.metrics()["speakerlens_bundles_scan_timestamp_seconds"]
            assert abs(looked - time.time() - seconds) < DAY / 2, "the server's clock did not jump"
        slow = server.stub.Identify.future(request("da", toy.SLOW_SECONDS + 2), timeout=CALL_SECONDS)
        server.wait_for_metric(IN_FLIGHT, 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("draining")
        jump(DAY)
        assert slow.result().answers
        assert server.wait() == 0


def test_hanging_scrapers_delay_nothing(toy_bundles: Path) -> None:
    """Connections to the metrics port that send nothing affect neither calls nor other scrapers nor the stop."""
    with ServerProcess(toy_bundles) as server:
        address = urlsplit(server.ready["metrics"])
        assert address.hostname is not None
        assert address.port is not None
        idle = [socket.create_connection((address.hostname, address.port)) for _ in range(20)]
        for each in idle[:10]:
            each.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        assert server.identify(request("clean")).answers
        assert server.metrics()['speakerlens_requests_total{code="OK",method="Identify",variant="clean"}'] == 1
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10
        for each in idle:
            each.close()


def test_calls_are_answered_without_metrics(toy_bundles: Path) -> None:
    with ServerProcess(toy_bundles, "--no-metrics") as server:
        assert "metrics" not in server.ready
        assert server.identify(request("clean")).answers
