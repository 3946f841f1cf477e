"""Choose where ONNX Runtime computes: all that CUDA needs is checked, and named, before a model is opened.

Checked are, in this order: ONNX Runtime's build, NVIDIA's driver, the GPU, the libraries of CUDA, cuDNN, and a small
graph that runs. Whatever is missing, ONNX Runtime itself reports as a graph that cannot be opened, or not at all.
"""

import base64
import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import io
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# ONNX Runtime reads it on import, and would report usage otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

# Its warnings about devices that it does not find say less than the check below; errors are still written, to stderr.
ort.set_default_logger_severity(3)

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# By CUDA's major version: the first driver, and the least compute capability of a GPU that its libraries support.
DRIVERS = {12: "525", 13: "580"}
CAPABILITIES = {13: (7, 5)}
CUDNN = 9
OPTIONS = {
    # An exhaustive search costs seconds for every new length of audio.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Doubling the arena at each growth keeps memory that one long request once needed.
    "arena_extend_strategy": "kSameAsRequested",
    # Bundles were verified in full float32.
    "use_tf32": "0",
}
# A convolution, for cuDNN, and a matrix product, for cuBLAS; x [1, 1, 4] in, [1, 1, 2] out.
SMALL_GRAPH = base64.b64decode(
    "CAg6lQEKDwoBeAoBdxIBYyIEQ29udgoRCgFjCgFtEgF5IgZNYXRNdWwSBXNtYWxsKhkIAQgBCAMQAUIBd0oMAACAPwAAgD8AAIA/"
    "KhsIAggCEAFCAW1KEAAAgD8AAIA/AACAPwAAgD9aFwoBeBISChAIARIMCgIIAQoCCAEKAggEYhcKAXkSEgoQCAESDAoCCAEKAggB"
    "CgIIAkIECgAQEg=="
)
# In messages of ONNX Runtime, among names of its templates and files.
FAILURE = re.compile(
    r"\b(CUDA|CUDNN|CUDNN_FE|CUBLAS|CUBLAS_LT|CURAND|CUFFT) failure -?\d+: [^;]*"
    r"|(Failed to allocate memory|Available memory of) .*"
)
# CUdevice_attribute: the compute capability.
_MAJOR, _MINOR = 75, 76
# cudaHostAllocPortable: for all GPUs.
_PORTABLE = 1
_NAME_BYTES = 256


class CudaError(Exception):
    """CUDA cannot be used here: one sentence that says what was found and what is needed."""


@dataclass(frozen=True)
class Device:
    """Where models run.

    Attributes:
        provider: ONNX Runtime's execution provider, `CPU` or `CUDA`.
        index: number of the GPU among those that are visible, from 0.
        unused: why CUDA, which is installed, is not used; empty where it is not installed, or not wanted.
    """

    provider: str
    index: int = 0
    unused: str = ""

    @property
    def place(self) -> tuple[str, int]:
        """Return the device's name and number, as values of ONNX Runtime are placed by them."""
        return ("cuda", self.index) if self.provider == CUDA else ("cpu", 0)

    def providers(
        self, memory_bytes: int = 0, cuda_graphs: bool = False, tensorrt: Mapping[str, str] | None = None
    ) -> list[Any]:
        """Return the execution providers of a session, with their options.

        Args:
            memory_bytes: most GPU memory that the session's arena may take; 0: no limit.
            cuda_graphs: whether runs may be captured as CUDA graphs.
            tensorrt: options of TensorRT, which comes first then; None: without it.
        """
        if self.provider == CPU:
            return [CPU]
        index = {"device_id": str(self.index)}
        limit = {"gpu_mem_limit": str(memory_bytes)} if memory_bytes else {}
        graphs = {"enable_cuda_graph": "1"} if cuda_graphs else {}
        first = [] if tensorrt is None else [(TENSORRT, {**tensorrt, **index})]
        return [*first, (CUDA, OPTIONS | index | limit | graphs), CPU]


@functools.cache
def choose(device: str) -> Device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; the first call for a GPU takes up to seconds.

    Raises:
        CudaError: CUDA was asked for and does not work here.
    """
    if device == "cpu":
        return Device(CPU)
    index = int(device.partition(":")[2] or 0)
    try:
        check(index)
    except CudaError as error:
        if device != "auto":
            raise CudaError(f"--device {device}: {error}") from error
        return Device(CPU, unused=str(error) if CUDA in ort.get_available_providers() or _has_driver() else "")
    return Device(CUDA, index)


def choose_all(device: str) -> tuple[Device, ...]:
    """Return the devices for what `choose` takes, for several GPUs with commas between, or for `cuda:all`.

    Raises:
        CudaError: CUDA was asked for and does not work on one of them.
    """
    if device == "cuda:all":
        choose("cuda")
        device = ",".join(f"cuda:{index}" for index in range(_count(_driver())))
    return tuple(choose(each) for each in device.split(","))


def total_memory(index: int) -> int:
    """Return the bytes of memory of a GPU that works; 0 where the driver does not tell."""
    if sys.platform != "linux":
        return 0
    device, size = ctypes.c_int(), ctypes.c_size_t()
    driver = _driver()
    driver.cuDeviceGet(ctypes.byref(device), index)
    status = driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return 0 if status else size.value


def use_gpu(index: int) -> None:
    """Let this thread's next calls of CUDA go to a GPU: they would take memory on the first otherwise.

    Raises:
        OSError: CUDA's runtime is missing.
    """
    _runtime().cudaSetDevice(index)


def allocate_pinned(size: int) -> int:
    """Return the address of so many bytes of host memory that all GPUs read by themselves; they are not freed.

    Raises:
        OSError: there are none.
    """
    address = ctypes.c_void_p()
    status = _runtime().cudaHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), _PORTABLE)
    if status or not address.value:
        raise OSError(f"{size} bytes of pinned memory: CUDA error {status}")
    return address.value


def check_tensorrt() -> None:
    """Check that ONNX Runtime can load TensorRT, and load it; for a GPU on which CUDA works.

    Raises:
        CudaError: it cannot.
    """
    if TENSORRT not in ort.get_available_providers():
        raise CudaError(f"ONNX Runtime {ort.__version__} is built without TensorRT; speakerlens[gpu] has one with it")
    # TensorRT has no option for it in ONNX Runtime; bundles were verified in full float32.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    package = importlib.util.find_spec("tensorrt_libs")  # of NVIDIA's packages, not on the loader's path
    folders = package.submodule_search_locations or [] if package is not None else []
    with contextlib.suppress(OSError):  # what is missing then is named below
        for name in ("libnvinfer.so", "libnvonnxparser.so"):
            for file in sorted(file for folder in folders for file in Path(folder).glob(f"{name}.*")):
                ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(_provider("tensorrt"))
    except OSError as error:
        raise CudaError(
            f"a library of TensorRT is missing, {error}; NVIDIA's package tensorrt-cu{_cuda_major()} has it, in the "
            "version that the library's number names"
        ) from error


def check(index: int = 0) -> None:
    """Check that models can run on a GPU, and load the libraries they need.

    Args:
        index: of the GPU.

    Raises:
        CudaError: they cannot.
    """
    if CUDA not in ort.get_available_providers():
        raise CudaError(f"ONNX Runtime {ort.__version__} is built without CUDA; {_how_to_install()}")
    major = _cuda_major()
    printed = _preload()
    if sys.platform == "linux":  # elsewhere the libraries have other names, and only the small graph tells
        driver = _check_driver(major)
        _check_gpu(driver, index, major)
        _check_libraries(major, printed)
        _check_cudnn(major)
    _run_small_graph(index)


def _runtime() -> Any:
    """Return CUDA's runtime, which ONNX Runtime has loaded; raise `OSError` if it is missing."""
    return ctypes.CDLL(f"libcudart.so.{_cuda_major()}")


def _cuda_major() -> int:
    """Return the major version of CUDA that ONNX Runtime is built for."""
    return int(ort.cuda_version.partition(".")[0])


def _how_to_install() -> str:
    """Return what to do about an ONNX Runtime without CUDA."""
    installed = {each.metadata["Name"] for each in importlib.metadata.distributions()}
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        return (
            "both onnxruntime and onnxruntime-gpu are installed, and the files of one replaced the other's: uninstall "
            "both, then install speakerlens[gpu]"
        )
    return "install speakerlens[gpu] in place of speakerlens[cpu]"


def _has_driver() -> bool:
    """Return whether NVIDIA's driver is installed, with or without a GPU that works."""
    try:
        _driver()
    except OSError:
        return False
    return True


def _driver() -> Any:
    """Return the driver's library; raise `OSError` if it is missing."""
    return ctypes.CDLL("libcuda.so.1")


def _count(driver: Any) -> int:
    """Return the number of GPUs that a driver which works finds."""
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value


def _preload() -> str:
    """Load the libraries of NVIDIA's packages, which are not on the loader's path; return what is printed meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        ort.preload_dlls()
    return " ".join(printed.getvalue().split())


def _check_driver(major: int) -> Any:
    """Return the driver's library; raise `CudaError` if it is missing or too old for CUDA `major`."""
    needed = (
        f"ONNX Runtime {ort.__version__} needs CUDA {major}, driver {DRIVERS.get(major, 'of that version')} or newer"
    )
    try:
        driver = _driver()
    except OSError as error:
        raise CudaError(
            f"no NVIDIA driver is found ({error}); {needed}, and a container the NVIDIA runtime (docker run --gpus all)"
        ) from error
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    found = divmod(version.value // 10, 100)
    if found[0] < major:
        older = "; speakerlens[gpu-cuda12] works with it" if found[0] == 12 else ""
        raise CudaError(f"the NVIDIA driver supports CUDA {found[0]}.{found[1]}; {needed}{older}")
    return driver


def _check_gpu(driver: Any, index: int, major: int) -> None:
    """Raise `CudaError` if the driver finds no GPU with this number, or one that CUDA `major` does not support."""
    status = driver.cuInit(0)
    count = ctypes.c_int()
    status = status or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        why = f" ({_error_name(driver, status)})" if status else ""
        raise CudaError(
            f"the NVIDIA driver finds no GPU that it can use{why}; one is needed, and in a container it must be named "
            "by --gpus or NVIDIA_VISIBLE_DEVICES"
        )
    if index >= count.value:
        names = "only cuda:0" if count.value == 1 else f"cuda:0 to cuda:{count.value - 1}"
        raise CudaError(f"there is no GPU {index}; the driver finds {names}")
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    least = CAPABILITIES.get(major, (0, 0))
    if tuple(capability) < least:
        raise CudaError(
            f"{_text(name.value)} has compute capability {capability[0]}.{capability[1]}; CUDA {major} needs "
            f"{least[0]}.{least[1]} or more, speakerlens[gpu-cuda12] less"
        )


def _error_name(driver: Any, status: int) -> str:
    """Return the driver's name of an error, such as CUDA_ERROR_NO_DEVICE."""
    name = ctypes.c_char_p()
    driver.cuGetErrorName(status, ctypes.byref(name))
    return _text(name.value) if name.value else f"error {status}"


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _check_libraries(major: int, printed: str) -> None:
    """Raise `CudaError` if a library is missing that ONNX Runtime's provider is linked with; the loader names it."""
    try:
        ctypes.CDLL(_provider("cuda"))
    except OSError as error:
        more = f" ({printed[:300]})" if printed else ""
        raise CudaError(f"a library is missing, {error}{more}; {_packages(major)} has those of CUDA {major}") from error


def _provider(name: str) -> str:
    """Return the path of the library of one of ONNX Runtime's execution providers."""
    return str(Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so")


def _check_cudnn(major: int) -> None:
    """Raise `CudaError` if cuDNN is missing, or of another version; a graph without it could only be refused."""
    name = f"libcudnn.so.{CUDNN}"
    try:
        cudnn = ctypes.CDLL(name)
    except OSError as error:
        raise CudaError(f"cuDNN {CUDNN} is missing ({error}); {_packages(major)} has it for CUDA {major}") from error
    cudnn.cudnnGetCudartVersion.restype = ctypes.c_size_t
    found = int(cudnn.cudnnGetCudartVersion()) // 1000
    if found != major:
        raise CudaError(
            f"{name} is built for CUDA {found}; ONNX Runtime {ort.__version__} needs cuDNN {CUDNN} for CUDA {major}"
        )


def _packages(major: int) -> str:
    return "speakerlens[gpu-cuda12]" if major == 12 else "speakerlens[gpu]"


def _run_small_graph(index: int) -> None:
    """Raise `CudaError` if a small graph does not run on the GPU, whatever the reason."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        # Without `enable_fallback` ONNX Runtime would print to stdout, and go on with the CPU.
        providers = Device(CUDA, index).providers()
        session = ort.InferenceSession(SMALL_GRAPH, options, providers=providers, enable_fallback=0)
        placed = session.get_providers()[0] == CUDA
        if placed:
            session.run(None, {"x": np.ones((1, 1, 4), np.float32)})
    except Exception as error:  # the errors of ONNX Runtime have no common base
        raise CudaError(f"the GPU does not compute: {one_line(error)}") from error
    if not placed:
        raise CudaError("ONNX Runtime leaves CUDA out without saying why")


def one_line(error: BaseException) -> str:
    """Return an error's message as one line: what CUDA says, if it is in there, else its beginning."""
    text = " ".join(str(error).split())
    failure = FAILURE.search(text)
    return failure[0].strip(" ;") if failure else text[:300]
