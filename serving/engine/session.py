"""One graph of a bundle on ONNX Runtime: utterances of different lengths in, an answer for each out.

Utterances are padded with zeros to the length of a bucket; the graph's `lengths` input makes the padding invisible, and
what the graph says about padding is cut off again.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import SAMPLE_RATE, Bundle, BundleError
from speakerlens.serving.engine.buckets import DEFAULT_LIMITS, Buckets, Limits, cpu_buckets, cuda_buckets
from speakerlens.serving.errors import StartupError

# ONNX Runtime reads it on import, and would report usage otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime as ort
except ImportError as error:
    raise StartupError(
        f'no ONNX Runtime ({error}): install one with pip install "speakerlens[cpu]", or "speakerlens[gpu]" for CUDA'
    ) from error

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_OPTIONS = {
    # An exhaustive search costs seconds for every new length of audio.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Doubling the arena at each growth keeps memory that one long request once needed.
    "arena_extend_strategy": "kSameAsRequested",
    # Bundles were verified in full float32.
    "use_tf32": "0",
}
# One region large enough for most, of which only what is used takes memory: many small ones, as large as what
# was once asked for, are never joined.
ARENA = {"initial_chunk_size_bytes": 64 * 2**20}
# How ONNX Runtime, its arena and CUDA say that memory ran out; their errors have no type of their own.
MEMORY_WORDS = ("failed to allocate", "out of memory", "bad_alloc", "available memory of")


class Utterance(Protocol):
    """Part of every job: float32 [samples] at 16 kHz."""

    @property
    def audio(self) -> NDArray[np.float32]:
        """The samples."""


class Arrays(Protocol):
    """Part of every answer."""

    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """Everything in it that a graph computed."""


JobT = TypeVar("JobT", bound=Utterance)
ResultT = TypeVar("ResultT", bound=Arrays)
Row = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class GraphSpec(Generic[JobT, ResultT]):
    """What is particular to a graph.

    Attributes:
        file: its name in the bundle.
        outputs: what is asked of it, each [rows, ...].
        inputs: beside `audio` [rows, samples] and `lengths` [rows]: type and number of axes by name.
        feeds: values of those inputs for a batch, each [rows, ...].
        answer: from one row of every output, by name, padding included.
        example: a job for a waveform, for the warm-up.
        shapes: of an answer's `arrays()`, for so many samples.
    """

    file: str
    outputs: tuple[str, ...]
    inputs: Mapping[str, tuple[str, int]]
    feeds: Callable[[Sequence[JobT]], dict[str, NDArray[Any]]]
    answer: Callable[[Bundle, JobT, Row], ResultT]
    example: Callable[[Bundle, NDArray[np.float32]], JobT]
    shapes: Callable[[Bundle, int], list[tuple[int, ...]]]


@dataclass(frozen=True)
class BatchInputs(Generic[JobT]):
    """A batch as the graph takes it; there may be more rows than jobs."""

    jobs: Sequence[JobT]
    arrays: dict[str, NDArray[Any]] = field(repr=False)


class Graph(Generic[JobT, ResultT]):
    """A graph, open and checked; the work of a queue.

    Args:
        spec: which one.
        bundle: where it is.
        device: `auto`, `cpu` or `cuda`.
        threads: on the CPU; 0 is one per core.
        limits: of batches.

    Raises:
        BundleError: it cannot be opened, or does not fit its bundle.
        StartupError: CUDA was asked for and does not work here.
    """

    def __init__(
        self, spec: GraphSpec[JobT, ResultT], bundle: Bundle, device: str, threads: int, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._spec = spec
        self._bundle = bundle
        self._device = device
        self._threads = threads
        self.open()
        self.buckets: Buckets = (cuda_buckets if self.provider == CUDA else cpu_buckets)(limits)

    @property
    def provider(self) -> str:
        """What it really runs on, such as CPUExecutionProvider."""
        return str(self._session.get_providers()[0])

    def open(self) -> None:
        """Opens it, in the place of what was open before; errors as for the class."""
        self._session: Any = None  # its memory is needed
        session = _open(self._bundle, self._spec.file, self._device, self._threads)
        _check(session, self._bundle, self._spec)
        self._session = session

    def cost(self, job: JobT) -> int:
        """Samples that are computed for a job, padding included."""
        return self.buckets.length(len(job.audio))

    def prepare(self, jobs: Sequence[JobT]) -> BatchInputs[JobT]:
        """Makes a batch; in any thread."""
        lengths = [len(job.audio) for job in jobs]
        # Rows that only fill the batch up repeat its first.
        rows = [*jobs, *[jobs[0]] * (self.buckets.rows(len(jobs)) - len(jobs))]
        audio = np.zeros((len(rows), self.buckets.length(max(lengths))), np.float32)
        for row, job in zip(audio, rows, strict=True):
            row[: len(job.audio)] = job.audio
        samples = np.array([len(job.audio) for job in rows], np.int64)
        return BatchInputs(jobs, {"audio": audio, "lengths": samples, **self._spec.feeds(rows)})

    def compute(self, feed: BatchInputs[JobT]) -> list[ResultT]:
        """Answers a batch; answer i belongs to job i.

        Raises:
            MemoryError: the device has too little memory for it.
        """
        names = self._spec.outputs
        try:
            outputs = self._session.run(names, feed.arrays)
        except Exception as error:
            if any(words in str(error).lower() for words in MEMORY_WORDS):
                raise MemoryError(f"{self._spec.file}: {_line(error)}") from error
            raise
        answers = []
        for row, job in enumerate(feed.jobs):
            values = {name: output[row] for name, output in zip(names, outputs, strict=True)}
            answers.append(self._spec.answer(self._bundle, job, values))
        return answers

    def probe(self) -> None:
        """Computes something that has worked before; raises what it raises if that does not work any more."""
        self._try(1, self._bundle.min_samples)

    def warm_up(self) -> int:
        """Runs the shapes that traffic will have, and one of different lengths; returns how many.

        Raises:
            BundleError: it fails, or answers in other shapes than the bundle says.
        """
        shortest = self._bundle.min_samples
        shapes = [(rows, samples) for rows, samples in self.buckets.warm if samples >= shortest] or [(1, shortest)]
        try:
            for rows, samples in shapes:
                self._try(rows, samples)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's own have no base of theirs
            raise BundleError(f"{self._spec.file} fails at warm-up: {_line(error)}") from error
        return len(shapes)

    def _try(self, rows: int, samples: int) -> None:
        """Computes a row of `samples` and, beside it, rows that are padded."""
        noise = np.random.default_rng(0).normal(0, 0.05, samples).astype(np.float32)
        shorter = noise[: max(self._bundle.min_samples, samples - SAMPLE_RATE // 10)]
        jobs = [self._spec.example(self._bundle, audio) for audio in [noise, *[shorter] * (rows - 1)]]
        for job, answer in zip(jobs, self.compute(self.prepare(jobs)), strict=True):
            actual = [value.shape for value in answer.arrays()]
            expected = self._spec.shapes(self._bundle, len(job.audio))
            if actual != expected:
                raise BundleError(
                    f"{self._spec.file} answers {len(job.audio)} samples with shapes {actual}, not {expected}"
                )


def runtime_version() -> str:
    """Version of ONNX Runtime."""
    return str(ort.__version__)


def _open(bundle: Bundle, name: str, device: str, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # What it remembers of each shape is of use where the same few come again and again, and else only takes room.
    options.enable_mem_pattern = False
    providers: list[Any] = [CPU]
    if device != "cpu" and CUDA in ort.get_available_providers():
        providers.insert(0, (CUDA, CUDA_OPTIONS))
    try:
        # From memory, which refuses weights in files of their own: those stay mapped for as long as the graph is open,
        # and whoever overwrites such a file changes answers, or ends the process.
        session = ort.InferenceSession((bundle.folder / name).read_bytes(), options, providers=providers)
    except Exception as error:
        raise BundleError(f"{name} cannot be opened: {_line(error)}") from error
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise StartupError(f"--device cuda: this ONNX Runtime runs on {session.get_providers()[0]} here")
    return session


@functools.cache
def _share_arena() -> None:
    """One arena of the CPU's memory for all graphs of the process, of which one at a time computes.

    Each would else keep an arena of its own that is as large as its largest batch was.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(ARENA))


def _check(session: Any, bundle: Bundle, spec: GraphSpec[Any, Any]) -> None:
    actual = {node.name: (node.type, len(node.shape)) for node in session.get_inputs()}
    expected = {"audio": ("tensor(float)", 2), "lengths": ("tensor(int64)", 1), **spec.inputs}
    if actual != expected:
        raise BundleError(f"{spec.file} takes {actual}, not {expected}")
    missing = sorted(set(spec.outputs) - {node.name for node in session.get_outputs()})
    if missing:
        raise BundleError(f"{spec.file} has no output {', '.join(missing)}")
    metadata = session.get_modelmeta().custom_metadata_map
    # A graph of another network answers in the right shapes as well, under the wrong names.
    for key, value in (("variant", bundle.variant), ("version", bundle.version), ("speakers", list(bundle.speakers))):
        if _fact(metadata.get(key)) != value:
            raise BundleError(f"{spec.file} is of another bundle: its metadata disagrees with bundle.json about {key}")


def _fact(text: str | None) -> Any:
    """A fact in a graph's metadata, which is JSON; None if it is missing or anything else."""
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
