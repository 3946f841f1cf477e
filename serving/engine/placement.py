"""Where graphs run, and how they are opened there: devices, threads, and the batches that are computed at a time.

Several instances with few threads each compute more than one with all: threads that share a graph wait for each other
after every node (docs/decisions/0089-instances.md).
"""

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speakerlens.processor import cores
from speakerlens.serving.bundle import Bundle, BundleError
from speakerlens.serving.engine.buckets import Buckets
from speakerlens.serving.engine.graphs import GraphSpec
from speakerlens.serving.engine.onnx_messages import has_external_weights
from speakerlens.serving.errors import StartupError

try:
    import onnxruntime as ort

    from speakerlens.cuda import (
        CPU,
        CUDA,
        CudaError,
        Device,
        allocate_pinned,
        choose_all,
        one_line,
        total_memory,
        use_gpu,
    )
    from speakerlens.serving.engine.tensorrt import check_computes, engine_options, find_tensorrt
    from speakerlens.serving.engine.weights import SharedWeights, cut
except ImportError as error:
    raise StartupError(
        f'no ONNX Runtime ({error}): install one with pip install "speakerlens[cpu]", or "speakerlens[gpu]" for CUDA'
    ) from error

# Of the modules that import ONNX Runtime, for the engine.
__all__ = ["Device", "SharedWeights", "allocate_pinned", "one_line", "ort", "use_gpu"]

log = logging.getLogger(__name__)

# One region large enough for most batches, of which only the used part takes memory: small ones are never joined.
ARENA = {"initial_chunk_size_bytes": 64 * 2**20}
# Chosen by rule. More would leave a batch few threads where only some are computed, on machines with many cores.
MOST_INSTANCES = 4


def instances_of(instances: str, threads: int, gpus: int) -> int:
    """Return the number of batches that are computed at a time.

    Args:
        instances: a number, of each GPU where there are several; or `auto`: one per thread on the processor, at most
            MOST_INSTANCES, and one on a GPU, whose kernels use all of it.
        threads: of the processor; 0: one per core.
        gpus: number of GPUs on which graphs run; 0: on the processor.
    """
    if instances != "auto":
        return int(instances) * max(1, gpus)
    return gpus or min(threads or cores(), MOST_INSTANCES)


@dataclass(frozen=True)
class Placement:
    """Where a bundle's graphs run.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:N`, several of these with commas between, or `cuda:all`.
        threads: of a batch that is computed alone, on the CPU; 0 is one per core.
        instances: batches that are computed at the same time, on all devices together.
        device_bytes: most memory of a GPU that a graph may take; 0: no limit.
        cuda_graphs: whether batches of the warm shapes run as CUDA graphs, where one is computed at a time.
        tensorrt: folder of TensorRT's engines; None: GPUs compute without it.
    """

    device: str
    threads: int
    instances: int = 1
    device_bytes: int = 0
    cuda_graphs: bool = False
    tensorrt: Path | None = None

    @property
    def threads_of_instance(self) -> int:
        """Return the threads of an instance while all compute, on the CPU."""
        return self.threads if self.instances == 1 else max(1, (self.threads or cores()) // self.instances)


class Occupancy:
    """Counts the batches that are computed in this process; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches = 0

    @contextmanager
    def batch(self) -> Iterator[bool]:
        """Count a batch within the block; yield whether it is the only one as it begins."""
        with self._lock:
            alone = not self._batches
            self._batches += 1
        try:
            yield alone
        finally:
            with self._lock:
                self._batches -= 1


# Sessions are opened in the background one after another.
_opening = threading.Lock()


class InstanceSession:
    """A graph's session for batches that begin beside others; opened in the background when first wanted.

    Args:
        name: of the graph.
        whole: the session that is used until then, and where opening fails.
        opener: opens it; None: `whole` is used always.
    """

    def __init__(self, name: str, whole: Any, opener: Callable[[], Any] | None = None) -> None:
        self._name = name
        self._session = whole
        self._opener = opener
        self._lock = threading.Lock()

    def get(self) -> Any:
        """Return the session, or `whole` while there is none; thread-safe, waits for nothing."""
        if self._opener is not None:
            with self._lock:
                opener, self._opener = self._opener, None
            if opener is not None:
                self._begin(opener)
        return self._session

    def _begin(self, opener: Callable[[], Any]) -> None:
        try:
            threading.Thread(target=self._open, args=(opener,), name="open-session").start()
        except RuntimeError as error:
            self._warn(error)

    def _open(self, opener: Callable[[], Any]) -> None:
        try:
            with _opening:
                self._session = opener()
        except Exception as error:  # noqa: BLE001 - the errors of ONNX Runtime have no common base
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        log.warning("%s cannot be opened again for batches at the same time: %s", self._name, one_line(error))


def runtime_version() -> str:
    """Return the version of ONNX Runtime."""
    return str(ort.__version__)


def find_devices(device: str) -> tuple[Device, ...]:
    """Return where models run with a `Placement.device`; log once why CUDA, if installed, is not used.

    Raises:
        StartupError: CUDA was asked for and does not work here.
    """
    try:
        found = choose_all(device)
    except CudaError as error:
        raise StartupError(str(error)) from error
    if found[0].unused:
        _warn_of_cpu(found[0].unused)
    return found


def find_gpus(device: str) -> tuple[Device, ...]:
    """Return the GPUs on which models run, none if they run on the CPU; raises as `find_devices`."""
    return tuple(each for each in find_devices(device) if each.provider == CUDA)


def gpu_memory(gpus: tuple[Device, ...]) -> int:
    """Return the bytes of memory of the smallest of some GPUs."""
    return min(total_memory(each.index) for each in gpus)


def open_graph(
    bundle: Bundle, spec: GraphSpec[Any, Any], placement: Placement, weights: SharedWeights
) -> tuple[Any, InstanceSession]:
    """Return the session on the CPU for a batch that is computed alone, and that for others.

    Raises:
        BundleError: the graph cannot be opened.
    """
    content = _content(bundle, spec)
    few = placement.threads_of_instance
    try:
        arranged = weights.arrange(content, spec.outputs, _options(None), Device(CPU).providers())
        session = arranged.open(_options(placement.threads))
    except Exception as error:
        raise BundleError(f"{bundle.file(spec.file)} cannot be opened: {one_line(error)}") from error
    opener = None if few == placement.threads else lambda: arranged.open(_options(few))
    return session, InstanceSession(f"{bundle.name} {bundle.file(spec.file)}", session, opener)


def open_on_gpu(
    bundle: Bundle, spec: GraphSpec[Any, Any], placement: Placement, gpu: Device, buckets: Buckets, graphs: bool
) -> Any:
    """Return a session on a GPU.

    Args:
        bundle: of the graph.
        spec: which graph.
        placement: options.
        gpu: which.
        buckets: the shapes of batches; TensorRT builds an engine for these.
        graphs: whether runs may be captured as CUDA graphs.

    Raises:
        BundleError: the graph cannot be opened.
        StartupError: there is no TensorRT where it was asked for.
    """
    content, name = _content(bundle, spec), bundle.file(spec.file)
    tensorrt = None
    if placement.tensorrt is not None:
        find_tensorrt()
        tensorrt = engine_options(content, bundle, spec, placement.tensorrt, buckets)
    providers = gpu.providers(placement.device_bytes, graphs, tensorrt)
    options = _options(placement.threads)
    if tensorrt is not None:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        # ONNX Runtime's own fallback prints to stdout, and moves a session to the CPU while it serves.
        session = ort.InferenceSession(cut(content, spec.outputs), options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise BundleError(f"{name} cannot be opened with CUDA on GPU {gpu.index}: {one_line(error)}") from error
    if tensorrt is not None:
        check_computes(name, session)
    return session


def _content(bundle: Bundle, spec: GraphSpec[Any, Any]) -> bytes:
    """Return the content of a graph's file; raise `BundleError` if it needs other files."""
    name = bundle.file(spec.file)
    content = (bundle.folder / name).read_bytes()
    try:
        # They would be read from the working directory, without a digest, and stay mapped while the graph is open.
        external = has_external_weights(content)
    except ValueError as error:
        raise BundleError(f"{name} cannot be opened: {error}") from error
    if external:
        raise BundleError(f"{name} has weights in a file of their own; export it with all weights inside")
    return content


def _options(threads: int | None) -> Any:
    """Return the options of a session with so many threads, 0 for one per core; None: of one that only optimises."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1 if threads is None else threads
    options.inter_op_num_threads = 1
    # Threads that wait for each other by spinning take the cores from all others of the server: 18 ms of processor time
    # instead of 11 for 3 s of audio where they are busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    # Memory patterns by shape help where the same few shapes come again, and only take memory otherwise.
    options.enable_mem_pattern = False
    if threads is not None:
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    else:
        options.enable_cpu_mem_arena = False
    return options


@functools.cache
def _warn_of_cpu(reason: str) -> None:
    """Log once per reason that models run on the CPU although CUDA was hoped for."""
    log.warning("CUDA is installed and not used, models run on the CPU: %s", reason)


@functools.cache
def _share_arena() -> None:
    """Use one arena of CPU memory for all graphs of the process, of which few at a time compute.

    Otherwise each would keep an arena of its own, as large as its largest batch was.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(ARENA))
