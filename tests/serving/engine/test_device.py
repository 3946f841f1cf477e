"""Which device models run on, and what is said where CUDA does not work; CUDA and ONNX Runtime are replaced."""

import base64
import ctypes
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.testing import assert_allclose

from speakerlens import cuda
from speakerlens.cuda import (
    CPU,
    CUDA,
    SMALL_GRAPH,
    TENSORRT,
    CudaError,
    Device,
    allocate_pinned,
    check_tensorrt,
    choose,
    choose_all,
    total_memory,
)
from speakerlens.serving.bundle import BundleError
from speakerlens.serving.engine import placement
from speakerlens.serving.engine.gpu import pinned_memory
from speakerlens.serving.engine.placement import Placement, find_devices
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.errors import StartupError
from speakerlens.serving.models.reader import read_bundle
from tests.serving import toy

REAL = onnxruntime.InferenceSession
NEEDS = f"ONNX Runtime {onnxruntime.__version__} needs CUDA 13, driver 580 or newer"
Change = Callable[["Machine"], object]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    for cached in (placement._warn_of_cpu, choose):
        cached.cache_clear()
    yield
    choose.cache_clear()


class Machine:
    """A machine with ONNX Runtime for CUDA 13 and two GPUs, on which everything works; tests take something away."""

    def __init__(self) -> None:
        self.driver_version = 13010
        self.init_status = 0
        self.gpus = 2
        self.capability = (9, 0)
        self.cudnn_for = 13000
        self.memory = 80 * 2**30
        self.pinned = 4096
        self.used: list[int] = []
        self.missing: dict[str, str] = {}
        self.error: str | None = None
        self.places = True
        self.options: list[Any] = []

    def library(self, name: str) -> Any:
        """Return the stand-in of a library, or raise as the loader does."""
        name = Path(name).name
        if name in self.missing:
            raise OSError(self.missing[name])
        if name.startswith("libcudnn"):
            return SimpleNamespace(cudnnGetCudartVersion=_Function(lambda: self.cudnn_for))
        return SimpleNamespace(
            cuDriverGetVersion=lambda out: _set(out, self.driver_version),
            cuInit=lambda flags: self.init_status,
            cuDeviceGetCount=lambda out: _set(out, self.gpus),
            cuDeviceGet=_set,
            cuDeviceGetName=lambda name, size, device: setattr(name, "value", b"A GPU"),
            cuDeviceGetAttribute=lambda out, which, device: _set(out, self.capability[which - 75]),
            cuDeviceTotalMem_v2=lambda out, device: _set(out, self.memory),
            cudaSetDevice=self.used.append,
            cudaHostAlloc=lambda out, size, flags: _set(out, self.pinned) or (0 if self.pinned else 2),
            cuGetErrorName=lambda status, out: _set(out, b"CUDA_ERROR_NO_DEVICE"),
        )

    def open(self, content: bytes, options: Any, providers: Sequence[Any], enable_fallback: int = 1) -> Any:
        """Open a graph on the CPU, as if on what `providers` names."""
        assert not enable_fallback, "ONNX Runtime's own fallback prints to stdout"
        first = providers[0]
        if first != CPU:
            self.options.append(first[1])
            if self.error is not None:
                raise RuntimeError(self.error)
        opened = REAL(content, options, providers=[CPU])
        if first != CPU and self.places:
            opened.get_providers = lambda: [CUDA, CPU]
        return opened


class _Function:
    """A function of a library, with a result type that can be set."""

    restype: Any = None

    def __init__(self, call: Callable[[], int]) -> None:
        self.__call = call

    def __call__(self) -> int:
        return self.__call()


def _set(pointer: Any, value: Any) -> int:
    pointer._obj.value = value
    return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(onnxruntime, "InferenceSession", made.open)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0")
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("Failed to load libcublas"))
    monkeypatch.setattr(ctypes, "CDLL", made.library)
    return made


def test_gpu_that_works_is_used(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose("auto") == choose("cuda") == Device(CUDA, 0)
    assert choose("cuda:1") == Device(CUDA, 1)
    assert [each["device_id"] for each in machine.options] == ["0", "0", "1"]
    assert choose("cpu") == Device(CPU)
    assert capsys.readouterr().out == ""


def test_graphs_are_opened_on_the_gpu_within_its_memory(tmp_path: Path, machine: Machine) -> None:
    bundle = read_bundle(toy.write_bundle(tmp_path, "v", 1))
    choose("cuda:1")
    machine.options.clear()
    assert Engine(bundle, Placement("cuda:1", 1, device_bytes=2**30)).provider == CUDA
    assert [(each["device_id"], each["gpu_mem_limit"]) for each in machine.options] == [("1", str(2**30))] * 7


GONE = "{}: cannot open shared object file"
PROVIDER = "libonnxruntime_providers_cuda.so"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda m: m.missing.update({"libcuda.so.1": GONE.format("libcuda.so.1")}),
            f"no NVIDIA driver is found ({GONE.format('libcuda.so.1')}); {NEEDS}",
        ),
        (
            lambda m: setattr(m, "driver_version", 12040),
            f"the NVIDIA driver supports CUDA 12.4; {NEEDS}; speakerlens[gpu-cuda12] works with it",
        ),
        (lambda m: setattr(m, "driver_version", 11080), f"the NVIDIA driver supports CUDA 11.8; {NEEDS}"),
        (lambda m: setattr(m, "init_status", 100), "finds no GPU that it can use (CUDA_ERROR_NO_DEVICE)"),
        (lambda m: setattr(m, "gpus", 0), "finds no GPU that it can use; one is needed"),
        (lambda m: setattr(m, "capability", (7, 0)), "A GPU has compute capability 7.0; CUDA 13 needs 7.5 or more"),
        (
            lambda m: m.missing.update({PROVIDER: GONE.format("libcublasLt.so.13")}),
            f"a library is missing, {GONE.format('libcublasLt.so.13')} (Failed to load libcublas); speakerlens[gpu]",
        ),
        (
            lambda m: m.missing.update({"libcudnn.so.9": GONE.format("libcudnn.so.9")}),
            f"cuDNN 9 is missing ({GONE.format('libcudnn.so.9')}); speakerlens[gpu] has it for CUDA 13",
        ),
        (lambda m: setattr(m, "cudnn_for", 12080), "libcudnn.so.9 is built for CUDA 12"),
        (
            lambda m: setattr(m, "error", "CUDA failure 209: no kernel image\nmore"),
            "the GPU does not compute: CUDA failure 209: no kernel image more",
        ),
        (lambda m: setattr(m, "places", False), "ONNX Runtime leaves CUDA out"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_before_a_bundle_is_opened(
    tmp_path: Path, machine: Machine, caplog: pytest.LogCaptureFixture, change: Change, sentence: str
) -> None:
    change(machine)
    with pytest.raises(StartupError) as caught:
        find_devices("cuda")
    assert str(caught.value).startswith("--device cuda: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    bundle = read_bundle(toy.write_bundle(tmp_path, "v", 1))
    with caplog.at_level(logging.WARNING):
        assert Engine(bundle, Placement("auto", 1)).provider == CPU
    (record,) = caplog.records
    assert record.getMessage().startswith("CUDA is installed and not used")
    assert sentence in record.getMessage()
    assert find_devices("auto")[0].unused
    assert not find_devices("cpu")[0].unused


def test_gpu_that_is_not_there_is_refused(machine: Machine) -> None:
    with pytest.raises(CudaError, match="--device cuda:2: there is no GPU 2; the driver finds cuda:0 to cuda:1"):
        choose("cuda:2")
    machine.gpus = 1
    with pytest.raises(CudaError, match="the driver finds only cuda:0"):
        choose("cuda:1")


def test_several_gpus_are_named_or_all(machine: Machine) -> None:
    assert choose_all("cuda:1,cuda:0") == (Device(CUDA, 1), Device(CUDA, 0))
    assert choose_all("cuda:all") == (Device(CUDA, 0), Device(CUDA, 1))
    assert choose_all("cpu") == (Device(CPU),)
    with pytest.raises(CudaError, match="--device cuda:2: there is no GPU 2"):
        choose_all("cuda:0,cuda:2")
    assert total_memory(1) == 80 * 2**30


def test_pinned_memory_is_refused_with_cudas_error(machine: Machine) -> None:
    assert allocate_pinned(100) == 4096
    assert not pinned_memory(1)._allocate(4096) % 4096
    assert machine.used == [1]
    machine.pinned = 0
    with pytest.raises(OSError, match="100 bytes of pinned memory: CUDA error 2"):
        allocate_pinned(100)


def test_missing_tensorrt_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with pytest.raises(CudaError, match="is built without TensorRT"):
        check_tensorrt()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    check_tensorrt()
    machine.missing["libonnxruntime_providers_tensorrt.so"] = GONE.format("libnvinfer.so.10")
    bundle = read_bundle(toy.write_bundle(tmp_path, "v", 1))
    with pytest.raises(StartupError) as caught:
        Engine(bundle, Placement("cuda", 1, tensorrt=tmp_path / "engines"))
    assert str(caught.value) == (
        f"--tensorrt: a library of TensorRT is missing, {GONE.format('libnvinfer.so.10')}; NVIDIA's package "
        "tensorrt-cu13 has it, in the version that the library's number names"
    )


def test_graph_without_tensorrt_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ONNX Runtime leaves it out without an error."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    bundle = read_bundle(toy.write_bundle(tmp_path, "v", 1))
    with pytest.raises(BundleError, match=r"predict\.onnx cannot be opened with TensorRT: ONNX Runtime leaves it out"):
        Engine(bundle, Placement("cuda", 1, tensorrt=tmp_path / "engines"))
    options = machine.options[-1]
    assert options["trt_engine_cache_enable"] == "True"
    assert Path(options["trt_engine_cache_path"]).parent == tmp_path / "engines"
    assert options["device_id"] == "0"


def test_broken_graph_is_refused_whatever_the_device(tmp_path: Path, machine: Machine) -> None:
    bundle = read_bundle(toy.write_bundle(tmp_path, "v", 1))
    choose("auto")
    machine.error = "CUDA out of memory"
    with pytest.raises(BundleError, match=r"predict\.onnx cannot be opened with CUDA on GPU 0: CUDA out of memory"):
        Engine(bundle, Placement("auto", 1))
    (bundle.folder / "predict.onnx").write_bytes(b"x" * 99)
    for device in ("auto", "cpu"):
        with pytest.raises(BundleError, match=r"predict\.onnx cannot be opened: not an ONNX graph"):
            Engine(bundle, Placement(device, 1))


def test_cpu_build_warns_only_beside_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(cuda, "_has_driver", lambda: False)
    assert choose("auto") == Device(CPU)
    choose.cache_clear()
    monkeypatch.setattr(cuda, "_has_driver", lambda: True)
    assert "is built without CUDA; install speakerlens[gpu]" in choose("auto").unused


def test_both_runtimes_in_one_environment_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    both = [SimpleNamespace(metadata={"Name": name}) for name in ("onnxruntime", "onnxruntime-gpu")]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: both)
    with pytest.raises(CudaError, match="both onnxruntime and onnxruntime-gpu are installed"):
        choose("cuda")


def test_small_graph_has_a_convolution_and_a_product() -> None:
    model = onnx.load_from_string(SMALL_GRAPH)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv", "MatMul"]
    opened = REAL(SMALL_GRAPH, providers=[CPU])
    (found,) = opened.run(None, {"x": np.ones((1, 1, 4), np.float32)})
    assert_allclose(found, [[[6, 6]]])
    assert len(base64.b64encode(SMALL_GRAPH)) < 400
