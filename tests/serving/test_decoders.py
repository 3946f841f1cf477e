"""Decoder processes of a running server: what ends them costs one request, and they end with the server."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import soundfile as sf

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.harness import ServerProcess, voice
from tests.test_decoding import FLAC, ends

REQUEST = pb.IdentifyRequest(audio=pb.Audio(encoded=FLAC))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("bundles")
    toy.write_bundle(root, "da", 1)
    with ServerProcess(root, "--probe-seconds=0") as server:
        yield server


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"\nPPid:\t{pid}\n" in text:
            found.append(int(status.parent.name))
    return found


def workers(server: ServerProcess) -> list[int]:
    return [worker for template in children(server.process.pid) for worker in children(template)]


def long_flac(folder: Path) -> bytes:
    path = folder / "long.flac"
    sf.write(path, np.tile(voice(5.0), 3), 16_000)
    return path.read_bytes()


def test_killed_worker_costs_at_most_its_request(server: ServerProcess, tmp_path: Path) -> None:
    """While a long recording is in work, in blocks, its worker is ended; unless it was decoded before."""
    server.identify(REQUEST, timeout=None)
    request = pb.IdentifyRequest(audio=pb.Audio(encoded=long_flac(tmp_path)))
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(server.identify, request, timeout=None)
        while not workers(server) and not call.done():
            time.sleep(0.001)
        for worker in workers(server):
            os.kill(worker, signal.SIGSEGV)
        error = call.exception()
    if error is not None:
        assert isinstance(error, grpc.RpcError)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "audio.encoded: the decoder was stopped by a fault: this FLAC" in str(error.details())
    assert server.metrics()['speakerlens_decoder_restarts_total{reason="crash"}'] == (error is not None)
    server.identify(REQUEST, timeout=None)


def test_worker_that_answers_no_more_is_ended_at_the_deadline(server: ServerProcess) -> None:
    server.identify(REQUEST, timeout=None)
    for each in workers(server):
        os.kill(each, signal.SIGSTOP)
    with pytest.raises(grpc.RpcError) as caught:
        server.identify(REQUEST, timeout=1.0)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    for each in workers(server):
        os.kill(each, signal.SIGCONT)
    server.identify(REQUEST, timeout=None)


def test_workers_end_with_the_server(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "da", 1)
    with ServerProcess(tmp_path, "--probe-seconds=0") as server:
        server.identify(REQUEST, timeout=None)
        processes = children(server.process.pid) + workers(server)
    assert len(processes) >= 2
    assert all(ends(pid) for pid in processes)
