"""The server with the real onnxruntime-gpu on stand-ins of CUDA's libraries: what is placed, refused and recovered.

Fetches 256 MB, into the folder FAKE_CUDA if that is set, where it is found again.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from benchmarks.gpu import SHAPES
from speakerlens.cuda import CUDA
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.conftest import ROOT
from tests.fake_cuda.fetch import fetch
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, START_SECONDS, ServerProcess, raw, voice
from tests.sharing import made_once

pytestmark = [pytest.mark.slow, pytest.mark.process]

Environment = dict[str, str]


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with onnxruntime-gpu in `packages` and the stand-ins in `libraries`."""

    def make(folder: Path) -> None:
        if (folder / "libraries" / "libcudnn.so.9").exists():
            return
        try:
            fetch(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or str(error)
            (folder / "failure").write_text(why[-1000:])

    kept = os.environ.get("FAKE_CUDA")
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        make(Path(kept))
    folder = Path(kept) if kept else made_once(tmp_path_factory, worker_id, "fake-cuda", make)
    if (folder / "failure").exists():
        pytest.skip(f"onnxruntime-gpu cannot be fetched: {(folder / 'failure').read_text()}")
    return folder


@pytest.fixture
def machine(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the environment that of a machine with a GPU; return the folder of its libraries."""
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for file in (stand_in / "libraries").glob("*.so.*[0-9]"):
        (libraries / file.name).symlink_to(file)
    path = [str(stand_in / "packages"), os.environ.get("PYTHONPATH", str(ROOT))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries))
    return libraries


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    toy.write_bundle(tmp_path / "bundles", "v", 1)
    return tmp_path / "bundles"


def refusal(bundles: Path, *flags: str, more: Mapping[str, str] = {}) -> str:
    """Return the one line of a server that does not start."""
    command = [sys.executable, "-m", "serving", "--bundles", str(bundles), "--port=0", "--metrics-port=0", *flags]
    environment = {**os.environ, **more}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr.strip().splitlines()[-1]


def test_graphs_are_placed_on_cuda_without_copies(machine: Path, bundles: Path, tmp_path: Path) -> None:
    """By the check of a machine; it finds, moreover, that the stand-in computes nothing."""
    command = [sys.executable, "-m", "benchmarks.gpu", str(bundles), "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, check=False, timeout=600, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["device"] == CUDA
    # Results are whatever was in memory.
    assert any("differs from the CPU's by" in line for line in report["failed"])
    of_results = (" differs from ", "has other results", "an engine that is opened again computes something else")
    assert [line for line in report["failed"] if not any(each in line for each in of_results)] == []
    for bundle in report["bundles"]:
        kinds = (".onnx", ".fp16.onnx")
        assert set(bundle["placement"]) == {f"{n}{kind}" for n in ("predict", "explain", "verify") for kind in kinds}
        for name, placed in bundle["placement"].items():
            assert placed["copies"] == 0, name
            assert set(placed["on_cpu"]) <= SHAPES, name
            assert placed["on_cuda"] > 50, name
            assert placed["of_values"] == [], name
        assert {"predict, plain", "predict, CUDA graphs", "S2 to S4, all GPUs"} <= set(bundle["ways"])
        assert f"{bundle['bundle']}: predict, TensorRT: --tensorrt: a library of TensorRT" in "\n".join(
            report["skipped"]
        )
        assert "memory" in bundle["recovery"]["without memory"].lower()
        assert bundle["warm-up"]["shapes a graph"] > 20


def test_server_uses_all_gpus_without_graphs_it_cannot_capture(
    machine: Path, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each GPU has an instance. The toy's graphs have control flow, with which ONNX Runtime captures nothing."""
    monkeypatch.setenv("FAKE_CUDA_GPUS", "2")
    with ServerProcess(toys, "--device=cuda:all", "--cuda-graphs", fresh=True) as server:
        assert (server.ready["provider"], server.ready["instances"]) == (CUDA, 2)
        for seconds in (1.0, 1.0, 1.0, 2.0):
            assert server.identify(pb.IdentifyRequest(audio=raw(voice(seconds)))).answers
        assert "no CUDA graphs are used, batches are computed node by node: predict.onnx" in server.log
        assert "failed" not in server.log


def test_verification_on_the_gpu_is_of_the_gpu(machine: Path, bundles: Path) -> None:
    """A stand-in that computes nothing cannot agree with the network."""
    folder = str(min(bundles.glob("*/*")))
    command = [sys.executable, "-m", "export", "verify", folder, "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, check=False, timeout=600, capture_output=True, text=True)
    assert done.returncode == 1
    assert "comparisons with the eager network do not hold" in done.stderr


def test_server_uses_the_gpu(machine: Path, toys: Path) -> None:
    with ServerProcess(toys, "--device=cuda:0", fresh=True) as server:
        assert server.ready["provider"] == CUDA
        assert server.metrics()["speakerlens_engine_fallback"] == 0
        assert server.identify(pb.IdentifyRequest(audio=raw(voice(1.0)))).answers
        assert "not used" not in server.log


@pytest.mark.parametrize(
    ("library", "sentence"),
    [
        ("libcuda.so.1", "no NVIDIA driver is found (libcuda.so.1: cannot open shared object file"),
        ("libcudnn.so.9", "cuDNN 9 is missing (libcudnn.so.9: cannot open shared object file"),
        ("libcublasLt.so.13", "a library is missing, libcublasLt.so.13: cannot open shared object file"),
    ],
)
def test_missing_library_is_named(machine: Path, toys: Path, library: str, sentence: str) -> None:
    (machine / library).unlink()
    line = refusal(toys, "--device=cuda")
    assert line.startswith(f"error: --device cuda: {sentence}")
    with ServerProcess(toys, "--device=auto", fresh=True) as server:
        assert server.ready["provider"] == "CPUExecutionProvider"
        assert server.metrics()["speakerlens_engine_fallback"] == 1
        assert server.log.count(sentence) == 1


@pytest.mark.parametrize(
    ("more", "flag", "sentence"),
    [
        ({"FAKE_DRIVER_VERSION": "12040"}, "cuda", "the NVIDIA driver supports CUDA 12.4; "),
        ({"FAKE_CUDA_GPUS": "0"}, "cuda", "the NVIDIA driver finds no GPU that it can use (CUDA_ERROR_NO_DEVICE)"),
        ({"FAKE_CUDA_GPUS": "2"}, "cuda:2", "there is no GPU 2; the driver finds cuda:0 to cuda:1"),
        ({"FAKE_CUDA_MAJOR": "7"}, "cuda", "Fake GPU has compute capability 7.0; CUDA 13 needs 7.5"),
        ({"FAKE_CUDNN_FOR": "12080"}, "cuda", "libcudnn.so.9 is built for CUDA 12; "),
        ({"FAKE_CUDA_MEMORY": "256"}, "cuda", "the GPU does not compute: "),
    ],
)
def test_what_does_not_fit_is_named(machine: Path, toys: Path, more: Environment, flag: str, sentence: str) -> None:
    assert refusal(toys, f"--device={flag}", more=more).startswith(f"error: --device {flag}: {sentence}")


def test_missing_tensorrt_is_named(machine: Path, toys: Path, tmp_path: Path) -> None:
    line = refusal(toys, "--device=cuda", f"--tensorrt={tmp_path / 'engines'}")
    assert line.startswith("error: --tensorrt: a library of TensorRT is missing, libnvinfer.so.10: cannot open shared")


def test_model_beyond_the_memory_limit_is_refused_by_name(machine: Path, toys: Path) -> None:
    line = refusal(toys, "--device=cuda", "--max-device-bytes=16384")
    assert "cannot be opened with CUDA on GPU 0: Available memory of " in line


def until(condition: Callable[[], bool], seconds: float = CALL_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def breakable(
    machine: Path, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ServerProcess, Path]]:
    """A server, and the file that breaks its GPU while it exists."""
    monkeypatch.setenv("FAKE_CUDA_BROKEN_FILE", str(tmp_path / "broken"))
    with ServerProcess(toys, "--device=cuda", fresh=True) as server:
        yield server, tmp_path / "broken"


def test_engine_is_opened_again_after_an_error_of_cuda(breakable: tuple[ServerProcess, Path]) -> None:
    server, file = breakable
    request = pb.IdentifyRequest(audio=raw(voice(1.0)))
    assert server.identify(request).answers
    file.touch()
    with pytest.raises(grpc.RpcError) as caught:
        server.identify(request, timeout=5)
    assert caught.value.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
    )
    until(lambda: server.status("speakerlens.model/v") == "NOT_SERVING")
    file.unlink()
    # All graphs are opened again, as at the start.
    until(lambda: server.status("speakerlens.model/v") == "SERVING", START_SECONDS)
    assert server.identify(request).answers
    assert server.ready["provider"] == CUDA
