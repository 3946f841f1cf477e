"""The servers that are compared: the same graph, batches, threads and number of instances."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from benchmarks import triton_server
from benchmarks.peers import model
from benchmarks.peers.load import Target
from benchmarks.peers.networks import RATE, SECONDS, manifest_of, speech
from benchmarks.peers.workers import SkippedError
from benchmarks.processes import processor_seconds
from speakerlens.export.triton import config, write_models
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb

READY_SECONDS = 120
SERVICE = "/speakerlens.v1.SpeakerIdentification"
STAGES = (pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4)
EXPLAINED = {
    "predict": None,
    "explain": pb.ExplainOptions(stages=STAGES, resolution=pb.RESOLUTION_NATIVE),
    "fused": pb.ExplainOptions(encoding=pb.ENCODING_UINT8),
}


@dataclass(frozen=True)
class _Running:
    """A server that runs: its root process."""

    pid: int

    def processor_seconds(self) -> float:
        """Return the processor time of all its processes so far."""
        return processor_seconds(self.pid)


@dataclass(frozen=True)
class Served(_Running):
    """A server, and the request that it answers."""

    target: Target


@dataclass(frozen=True)
class Ours(_Running):
    """Our server, and its address."""

    address: str

    def target(self, bundle: Path, explain: pb.ExplainOptions | None, seconds: float) -> Target:
        """Return a request about speech of a bundle."""
        request = _request(bundle, explain, seconds, 0.0)
        return Target("grpc", self.address, f"{SERVICE}/Identify", request.SerializeToString(), _least(explain))

    def batch_target(self, bundle: Path, explain: pb.ExplainOptions | None, seconds: float, count: int) -> Target:
        """Return a request about different stretches of speech, together."""
        requests = [_request(bundle, explain, seconds, 0.37 * number) for number in range(count)]
        body = pb.IdentifyBatchRequest(requests=requests).SerializeToString()
        return Target("grpc", self.address, f"{SERVICE}/IdentifyBatch", body, count * _least(explain))


def _request(bundle: Path, explain: pb.ExplainOptions | None, seconds: float, start: float) -> pb.IdentifyRequest:
    """Return a request about speech of a bundle, in samples of 16 bits."""
    samples = (speech(bundle, seconds, start) * 32_767).astype("<i2")
    raw = pb.RawAudio(samples=samples.tobytes(), format=pb.SAMPLE_FORMAT_INT16, sample_rate=RATE)
    models = [pb.ModelSelector(variant=bundle.parent.name)]
    return pb.IdentifyRequest(audio=pb.Audio(raw=raw), models=models, explain=explain)


@dataclass(frozen=True)
class Setting:
    """A bundle, what is asked, the threads of a graph and how many graphs there are; `tools`: where Triton is kept."""

    bundle: Path
    kind: str
    threads: int
    instances: int
    tools: Path


@contextmanager
def ours(bundles: Sequence[Path], flags: Sequence[str] = ()) -> Iterator[Ours]:
    """Serve bundles with this project's server."""
    always = ["--port=0", "--metrics-port=0", "--probe-seconds=0", "--log-level=error", "--max-message-bytes=67108864"]
    with tempfile.TemporaryDirectory() as folder:
        for bundle in bundles:
            (Path(folder) / bundle.parent.name).mkdir()
            (Path(folder) / bundle.parent.name / bundle.name).symlink_to(bundle.resolve())
        words = [sys.executable, "-m", "speakerlens", "serve", "--bundles", folder, *always, *flags]
        with _process(words) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SkippedError("our server did not start")
            yield Ours(process.pid, json.loads(line)["grpc"])


@contextmanager
def speakerlens(setting: Setting) -> Iterator[Served]:
    """Serve with ours, whose own rule uses the cores: threads and instances are left to it."""
    with ours([setting.bundle]) as served:
        yield Served(served.pid, served.target(setting.bundle, EXPLAINED[setting.kind], SECONDS))


@contextmanager
def triton(setting: Setting) -> Iterator[Served]:
    """Serve with a real Triton, its Python backend and dynamic batching, from `speakerlens export triton`."""
    # Here, as a process that has imported tritonclient, as that of the tests, cannot register the same protocol again.
    from speakerlens.protos.inference import inference_pb2 as oip

    runtime = ("numpy<2", f"onnxruntime=={onnxruntime.__version__}")
    try:
        triton_server.fetch(setting.tools, runtime)
    except (subprocess.CalledProcessError, OSError) as error:
        raise SkippedError(f"not installed ({error})") from error
    with tempfile.TemporaryDirectory() as folder:
        models, log = Path(folder) / "models", Path(folder) / "log"
        name = _write_model(setting, models)
        triton_server.let_import(models, setting.tools)
        process, address = triton_server.start(setting.tools, models, log)
        try:
            triton_server.wait_ready(process, log)
            audio = speech(setting.bundle)
            tensors = {"audio": ("FP32", audio), "lengths": ("INT64", np.array([len(audio)]))}
            if setting.kind != "predict":
                tensors["target"] = ("INT64", np.array([-1]))
            request = oip.ModelInferRequest(model_name=name)
            for each, (kind, values) in tensors.items():
                request.inputs.add(name=each, datatype=kind, shape=[1, len(values)])
                request.raw_input_contents.append(values.tobytes())
            path, least = "/inference.GRPCInferenceService/ModelInfer", _least(EXPLAINED[setting.kind])
            target = Target("grpc", address, path, request.SerializeToString(), least)
            yield Served(process.pid, target)
        except RuntimeError as error:
            raise SkippedError(str(error)[:300]) from error
        finally:
            process.terminate()
            process.wait(60)


def _write_model(setting: Setting, models: Path) -> str:
    """Write the one model that is needed, with its instances; return its name."""
    write_models(setting.bundle, models, "python", model.MAX_BATCH)
    manifest = manifest_of(setting.bundle)
    name: str = manifest["variant"] + ("" if setting.kind == "predict" else "-explain")
    for folder in models.iterdir():
        if folder.name != name:
            shutil.rmtree(folder)
    graph = onnx.load_from_string(model.graph_of(setting.bundle, setting.kind))
    onnx.save(graph, models / name / str(manifest["version"]) / "model.onnx")
    text = config(graph, manifest, name, "python", model.MAX_BATCH)
    text += f"instance_group [ {{ count: {setting.instances} kind: KIND_CPU }} ]\n"
    text += f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{setting.threads}" }} }}\n'
    (models / name / "config.pbtxt").write_text(text, "utf-8")
    return name


@contextmanager
def mosec(setting: Setting) -> Iterator[Served]:
    """Serve with mosec; a body is the samples."""
    with _http(setting, "mosec", "/inference", speech(setting.bundle).tobytes(), ["--timeout=600000"]) as served:
        yield served


@contextmanager
def litserve(setting: Setting) -> Iterator[Served]:
    """Serve with LitServe; a body is JSON."""
    body = json.dumps({"audio": base64.b64encode(speech(setting.bundle).tobytes()).decode()}).encode()
    with _http(setting, "litserve", "/predict", body, []) as served:
        yield served


SERVERS: dict[str, Callable[[Setting], AbstractContextManager[Served]]] = {
    "ours": speakerlens,
    "Triton": triton,
    "mosec": mosec,
    "LitServe": litserve,
}


@contextmanager
def _http(setting: Setting, package: str, path: str, body: bytes, flags: list[str]) -> Iterator[Served]:
    if find_spec(package) is None:
        raise SkippedError(f"not installed ({package})")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {
        model.BUNDLE: str(setting.bundle.resolve()),
        model.KIND: setting.kind,
        model.THREADS: str(setting.threads),
        "PEERS_INSTANCES": str(setting.instances),
    }
    words = [sys.executable, "-m", f"benchmarks.peers.{package}_app", f"--port={port}", *flags]
    with _process(words, variables) as process:
        _wait_port(process, port)
        target = Target("http", f"127.0.0.1:{port}", path, body, _least(EXPLAINED[setting.kind]))
        yield Served(process.pid, target)


@contextmanager
def _process(words: list[str], variables: dict[str, str] | None = None) -> Iterator["subprocess.Popen[str]"]:
    environment = {**os.environ, **(variables or {})}
    with subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):  # LitServe's workers outlive it
                os.killpg(process.pid, signal.SIGKILL)


def _wait_port(process: "subprocess.Popen[str]", port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SkippedError("its server did not start") from None
            time.sleep(0.1)
        else:
            return


def _least(explain: object) -> int:
    """Return the least bytes of an answer: scores alone, or maps."""
    return 10_000 if explain else 100
