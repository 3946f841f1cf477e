"""Start, drain and stop of real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import onnxruntime
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice
from tests.serving.startup import failing

# Long audio in one batch.
WHOLE = "--window-seconds=60"


def slow_request(seconds: float = 3, variant: str = "da") -> pb.IdentifyRequest:
    models = [pb.ModelSelector(variant=variant)]
    return pb.IdentifyRequest(audio=raw(voice(toy.SLOW_SECONDS + seconds)), models=models)


def failing_process(*flags: str) -> str:
    """Return what a server process that cannot start writes on stderr."""
    process = subprocess.run(
        [sys.executable, "-m", "serving", "--port=0", "--metrics-port=0", *flags],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    assert process.returncode == 1
    return process.stderr


def test_sigterm_finishes_calls_and_refuses_new_ones(toy_bundles: Path) -> None:
    with ServerProcess(toy_bundles, fresh=True) as server:
        watcher = server.health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(watcher).status == health_pb2.HealthCheckResponse.SERVING
        slow = server.stub.Identify.future(slow_request(), timeout=CALL_SECONDS)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("draining")
        assert next(watcher).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            server.identify(pb.IdentifyRequest(audio=raw(voice(1.0))), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not slow.done(), "the request was not in progress: the test shows nothing"
        expected = toy.expected(toy.weights(2), voice(toy.SLOW_SECONDS + 3))["logits"].max()
        assert slow.result().answers[0].speakers[0].logit == pytest.approx(expected, rel=1e-4)
        assert server.wait() == 0
        assert "stopped" in server.log


def test_a_second_sigterm_ends_the_process(toy_bundles: Path) -> None:
    server = ServerProcess(toy_bundles, WHOLE, fresh=True)
    slow = server.stub.Identify.future(slow_request(30))
    server.wait_for_metric("speakerlens_requests_in_flight", 1)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_log("draining")
    started = time.monotonic()
    assert server.stop() == 128 + signal.SIGTERM
    assert time.monotonic() - started < 2
    assert slow.code() is not grpc.StatusCode.OK
    server.channel.close()


def test_calls_are_aborted_when_the_drain_time_is_over(toy_bundles: Path) -> None:
    server = ServerProcess(toy_bundles, WHOLE, "--drain-seconds=0.3")
    slow = server.stub.Identify.future(slow_request(30))
    server.wait_for_metric("speakerlens_requests_in_flight", 1)
    started = time.monotonic()
    assert server.stop() == 1
    assert time.monotonic() - started < 5
    assert "calls were aborted" in server.log
    assert slow.code() is not grpc.StatusCode.OK
    server.channel.close()


def test_an_idle_server_stops_without_drain_time(toy_bundles: Path) -> None:
    """The context manager asserts status 0, also after answered calls."""
    with ServerProcess(toy_bundles, "--drain-seconds=0", fresh=True) as server:
        server.identify(pb.IdentifyRequest(audio=raw(voice(1.0))))
    assert "aborted" not in server.log


def test_an_open_reflection_stream_does_not_delay_the_stop(toy_bundles: Path) -> None:
    released = threading.Event()

    def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        released.wait(60)

    with ServerProcess(toy_bundles, f"--drain-seconds={CALL_SECONDS}") as server:
        answers = reflection_pb2_grpc.ServerReflectionStub(server.channel).ServerReflectionInfo(questions())
        assert next(answers).list_services_response.service
        slow = server.stub.Identify.future(slow_request(), timeout=CALL_SECONDS)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("draining")
        assert not slow.done(), "the request was not in progress: the test shows nothing"
        assert slow.result().answers
        started = time.monotonic()
        assert server.wait() == 0
        assert time.monotonic() - started < 5
        released.set()


def test_calls_are_refused_until_the_warm_up_is_over(tmp_path: Path) -> None:
    """While models load, health is NOT_SERVING; SIGTERM in that state is a clean stop, too."""
    toy.write_bundle(tmp_path, "slow", 1, slow_seconds=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ServerProcess(tmp_path, f"--port={port}", wait=False)
    impatient = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 20)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=impatient) as channel:
        grpc.channel_ready_future(channel).result(60)
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        assert check(health_pb2.HealthCheckRequest(), timeout=5).status == health_pb2.HealthCheckResponse.NOT_SERVING
        list_models: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/speakerlens.v1.SpeakerIdentification/ListModels"
        )
        with pytest.raises(grpc.RpcError) as caught:
            list_models(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "starting" in (caught.value.details() or "")
    assert server.stop() == 0
    assert "on CPUExecutionProvider, gRPC" not in server.log, "it had begun to serve: the test shows nothing"


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_an_occupied_port_is_one_line_of_error(toy_bundles: Path, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = failing("--bundles", str(toy_bundles), f"{flag}={port}")
    assert text == f"{flag} {port}: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_missing_bundles_are_a_startup_error(tmp_path: Path) -> None:
    assert failing_process("--bundles", str(tmp_path / "none")) == (
        f"error: --bundles {tmp_path / 'none'}: no such folder\n"
    )
    assert "no bundle there; expected <variant>/<version>/bundle.json" in failing("--bundles", str(tmp_path))


def test_a_bad_bundle_leaves_the_others_served(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "good", 1)
    bad = toy.write_bundle(tmp_path, "bad", 1)
    (bad / "predict.onnx").write_bytes(b"not what was exported")
    with ServerProcess(tmp_path) as server:
        assert server.ready["models"] == ["good/1"]
        assert "bad/1: predict.onnx is not the file that was exported" in server.log
    text = failing("--bundles", str(_only(bad, tmp_path / "only")))
    assert "no usable bundle, 1 refused" in text
    assert "predict.onnx is not the file that was exported" in text


def test_a_missing_cuda_device_is_a_startup_error(toy_bundles: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    text = failing("--bundles", str(toy_bundles), "--device=cuda")
    assert text.startswith(f"--device cuda: ONNX Runtime {onnxruntime.__version__} is built without CUDA; install ")


def test_what_libraries_print_is_not_on_stdout(toy_bundles: Path) -> None:
    """From Python and from C, before the line that says the server is ready."""
    code = (
        "import os, sys, onnxruntime as ort\n"
        "make = ort.SessionOptions\n"
        "ort.SessionOptions = lambda: (print('EP Error'), os.write(1, b'*** falling back\\n'), make())[-1]\n"
        "from speakerlens.serving.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--bundles", str(toy_bundles), "--port=0", "--metrics-port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["ready"] is True
        process.terminate()
        out, log = process.communicate(timeout=60)
    assert out == ""
    assert "EP Error" in log
    assert "*** falling back" in log


def test_a_missing_runtime_is_one_line_of_error(toy_bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "serving", "--bundles", str(toy_bundles)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert process.returncode == 1
    assert process.stderr == (
        'error: no ONNX Runtime (not here): install one with pip install "speakerlens[cpu]", '
        'or "speakerlens[gpu]" for CUDA\n'
    )


def test_neither_torch_nor_training_is_imported() -> None:
    code = (
        "import sys, speakerlens.serving.server; "
        "print([m for m in sys.modules if m.removeprefix('speakerlens.').split('.')[0] in "
        "('torch', 'training', 'export', 'onnx')])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert process.stdout == "[]\n"


def test_reflection_and_metrics_can_be_turned_off(toy_bundles: Path) -> None:
    """Through the configuration file; the rest is served."""
    file = toy_bundles.parent / "closed.toml"
    file.write_text("reflection = false\nmetrics = false\n", encoding="utf-8")
    with ServerProcess(toy_bundles, f"--config={file}") as server:
        assert set(server.ready) == {"ready", "grpc", "provider", "instances", "models", "precisions"}
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = reflection_pb2_grpc.ServerReflectionStub(server.channel).ServerReflectionInfo(iter([question]))
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert server.status() == "SERVING"


def _only(bundle: Path, root: Path) -> Path:
    target = root / bundle.parent.name
    target.mkdir(parents=True)
    bundle.rename(target / bundle.name)
    return root
