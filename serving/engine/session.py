"""Sessions of ONNX Runtime for a bundle's graphs: opened, checked and warmed up; batches in, results out.

Utterances are padded with zeros to the length of a bucket. The graph's `lengths` input makes the padding invisible, and
the frames of the padding are cut off.
"""

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import SAMPLE_RATE, Bundle, BundleError
from speakerlens.serving.engine.buckets import DEFAULT_LIMITS, BatchLimits, Buckets, cpu_buckets, cuda_buckets
from speakerlens.serving.engine.graphs import (
    EMBED_SPEC,
    EXPLAIN_SPECS,
    LOWEST_STAGES,
    PREDICT_SPEC,
    VERIFY_SPECS,
    ComparedJob,
    Comparison,
    ExplainedPrediction,
    GraphSpec,
    Job,
    JobT,
    ResultT,
    check_fits,
)
from speakerlens.serving.engine.onnx_messages import has_external_weights
from speakerlens.serving.errors import StartupError

try:
    import onnxruntime as ort

    from speakerlens.cuda import CUDA, CudaError, Device, choose, one_line
    from speakerlens.serving.engine.weights import SharedWeights, cut
except ImportError as error:
    raise StartupError(
        f'no ONNX Runtime ({error}): install one with pip install "speakerlens[cpu]", or "speakerlens[gpu]" for CUDA'
    ) from error

log = logging.getLogger(__name__)

# One region large enough for most batches, of which only the used part takes memory: small ones are never joined.
ARENA = {"initial_chunk_size_bytes": 64 * 2**20}
# Parts of the messages of ONNX Runtime, its arena and CUDA when memory ran out; their errors have no own type.
MEMORY_WORDS = ("failed to allocate", "out of memory", "bad_alloc", "available memory of")


@dataclass(frozen=True)
class BatchInputs(Generic[JobT]):
    """Inputs of a graph by name, each [rows, ...]; there may be more rows than jobs."""

    jobs: Sequence[JobT]
    arrays: dict[str, NDArray[Any]] = field(repr=False)


class GraphSession(Generic[JobT, ResultT]):
    """An open graph; the work of a batcher.

    Args:
        spec: which graph.
        bundle: where it is.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: on the CPU; 0 is one per core.
        limits: of batches.
        device_bytes: most GPU memory that a graph may take; 0: no limit.
        weights: shared with the bundle's other graphs; None for its own.

    Attributes:
        measured: cost and seconds of a job after the warm-up; zeros before it.

    Raises:
        BundleError: the graph cannot be opened, or does not fit its bundle.
        StartupError: CUDA was asked for and does not work here.
    """

    def __init__(
        self,
        spec: GraphSpec[JobT, ResultT],
        bundle: Bundle,
        device: str,
        threads: int,
        limits: BatchLimits = DEFAULT_LIMITS,
        device_bytes: int = 0,
        weights: SharedWeights | None = None,
    ) -> None:
        self._spec = spec
        self._bundle = bundle
        self._device = device
        self._device_bytes = device_bytes
        self._threads = threads
        self.measured = (0.0, 0.0)
        self.open(weights or SharedWeights())
        self.buckets: Buckets = (cuda_buckets if self.provider == CUDA else cpu_buckets)(limits)

    @property
    def provider(self) -> str:
        """The execution provider that runs the graph, such as CPUExecutionProvider."""
        return str(self._session.get_providers()[0])

    def open(self, weights: SharedWeights) -> None:
        """Open the graph, after closing what was open before; raises as the class does."""
        self._session: Any = None  # its memory is needed
        device = find_device(self._device)
        session = _open(self._bundle, self._spec, device, self._device_bytes, self._threads, weights)
        check_fits(session, self._bundle, self._spec)
        self._session = session

    def cost(self, job: JobT) -> int:
        """Return the number of samples that are computed for a job, padding included."""
        return self.buckets.length(len(job.audio))

    def prepare(self, jobs: Sequence[JobT]) -> BatchInputs[JobT]:
        """Return the inputs of a batch; runs in any thread."""
        lengths = [len(job.audio) for job in jobs]
        # Rows that only fill the batch up repeat its first.
        rows = [*jobs, *[jobs[0]] * (self.buckets.rows(len(jobs)) - len(jobs))]
        audio = np.zeros((len(rows), self.buckets.length(max(lengths))), np.float32)
        for row, job in zip(audio, rows, strict=True):
            row[: len(job.audio)] = job.audio
        samples = np.array([len(job.audio) for job in rows], np.int64)
        return BatchInputs(jobs, {"audio": audio, "lengths": samples, **self._spec.make_inputs(rows)})

    def compute(self, inputs: BatchInputs[JobT]) -> list[ResultT]:
        """Return the results of a batch, one for each job in order.

        Raises:
            MemoryError: the device has too little memory for it.
        """
        names = self._spec.outputs
        try:
            outputs = self._session.run(names, inputs.arrays)
        except Exception as error:
            if any(words in str(error).lower() for words in MEMORY_WORDS):
                raise MemoryError(f"{self._spec.file}: {one_line(error)}") from error
            raise
        results = []
        for row, job in enumerate(inputs.jobs):
            values = {name: output[row] for name, output in zip(names, outputs, strict=True)}
            results.append(self._spec.make_result(self._bundle, job, values))
        return results

    def probe(self) -> None:
        """Compute a job that has worked before; raise what it raises."""
        self._try(1, self._bundle.min_samples)

    def warm_up(self) -> int:
        """Compute every shape that traffic will have, rows of different lengths among them; return their number.

        Raises:
            BundleError: the graph fails, or gives results of other shapes than the bundle says.
        """
        shortest = self._bundle.min_samples
        shapes = [(rows, samples) for rows, samples in self.buckets.warm if samples >= shortest] or [(1, shortest)]
        brief = self._spec.brief and self.provider != CUDA
        try:
            for rows, samples in [] if brief else shapes:
                self._try(rows, samples)
            longest = max(samples for rows, samples in shapes if rows == 1)
            started = time.monotonic()
            self._try(1, longest)
            self.measured = (float(self.buckets.length(longest)), time.monotonic() - started)
        except BundleError:
            raise
        except Exception as error:  # the errors of ONNX Runtime have no common base
            raise BundleError(f"{self._spec.file} fails at warm-up: {one_line(error)}") from error
        return 1 if brief else len(shapes)

    def _try(self, rows: int, samples: int) -> None:
        """Compute one row of `samples` samples and shorter ones in the other rows; check the shapes of the results."""
        noise = np.random.default_rng(0).normal(0, 0.05, samples).astype(np.float32)
        shorter = noise[: max(self._bundle.min_samples, samples - SAMPLE_RATE // 10)]
        jobs = [self._spec.example(self._bundle, audio) for audio in [noise, *[shorter] * (rows - 1)]]
        for job, result in zip(jobs, self.compute(self.prepare(jobs)), strict=True):
            actual = [value.shape for value in result.arrays()]
            expected = self._spec.shapes(self._bundle, len(job.audio))
            if actual != expected:
                raise BundleError(
                    f"{self._spec.file} answers {len(job.audio)} samples with shapes {actual}, not {expected}"
                )


class Engine:
    """The open graphs of a bundle.

    Args:
        bundle: what to load.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: of each graph on the CPU; 0 is one per core.
        limits: of batches.
        device_bytes: most GPU memory that a graph may take; 0: no limit.

    Attributes:
        predict: logits and embedding, or the embedding only.
        explainers: maps of a speaker's score, by the lowest stage; empty without a classifier.
        verifiers: maps of a cosine, by the lowest stage.

    Raises:
        BundleError: a graph cannot be opened, or does not fit its bundle.
        StartupError: CUDA was asked for and does not work here.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str,
        threads: int,
        limits: BatchLimits = DEFAULT_LIMITS,
        device_bytes: int = 0,
    ) -> None:
        self._bundle = bundle
        plain = PREDICT_SPEC if bundle.has_classifier else EMBED_SPEC
        how = (bundle, device, threads, limits, device_bytes, SharedWeights())
        self.predict = GraphSession(plain, *how)
        self.explainers: Mapping[str, GraphSession[Job, ExplainedPrediction]] = {
            lowest: GraphSession(EXPLAIN_SPECS[lowest], *how)
            for lowest in (LOWEST_STAGES if bundle.has_classifier else ())
        }
        self.verifiers: Mapping[str, GraphSession[ComparedJob, Comparison]] = {
            lowest: GraphSession(VERIFY_SPECS[lowest], *how) for lowest in LOWEST_STAGES
        }
        self._graphs: tuple[GraphSession[Any, Any], ...] = (
            self.predict,
            *self.explainers.values(),
            *self.verifiers.values(),
        )

    @property
    def explain(self) -> GraphSession[Job, ExplainedPrediction]:
        """The graph that explains a speaker with the maps of all stages, of a model with a classifier."""
        assert self.explainers, "a model without a classifier explains no speaker"
        return self.explainers[LOWEST_STAGES[0]]

    @property
    def verify(self) -> GraphSession[ComparedJob, Comparison]:
        """The graph that compares two voices with the maps of all stages."""
        return self.verifiers[LOWEST_STAGES[0]]

    @property
    def provider(self) -> str:
        """The execution provider that runs the graphs, such as CPUExecutionProvider."""
        return self.predict.provider

    def warm_up(self) -> None:
        """Compute every shape that traffic will have on every graph.

        Raises:
            BundleError: a graph fails, or gives results of other shapes than the bundle says.
        """
        started = time.monotonic()
        shapes = sum(graph.warm_up() for graph in self._graphs)
        log.info("warmed up %s: %d shapes in %.1f s", self._bundle.name, shapes, time.monotonic() - started)

    def reopen(self) -> None:
        """Open every graph again and warm it up; takes seconds, runs in any thread.

        Raises:
            BundleError: a graph does not work.
        """
        weights = SharedWeights()
        for graph in self._graphs:
            graph.open(weights)
        self.warm_up()


def runtime_version() -> str:
    """Return the version of ONNX Runtime."""
    return str(ort.__version__)


def find_device(device: str) -> Device:
    """Return where models run with `auto`, `cpu`, `cuda` or `cuda:N`; log once why CUDA, if installed, is not used.

    Raises:
        StartupError: CUDA was asked for and does not work here.
    """
    try:
        found = choose(device)
    except CudaError as error:
        raise StartupError(str(error)) from error
    if found.unused:
        _warn_of_cpu(found.unused)
    return found


def _open(
    bundle: Bundle,
    spec: GraphSpec[Any, Any],
    device: Device,
    device_bytes: int,
    threads: int,
    weights: SharedWeights,
) -> Any:
    name = spec.file
    content = (bundle.folder / name).read_bytes()
    try:
        # They would be read from the working directory, without a digest, and stay mapped while the graph is open.
        external = has_external_weights(content)
    except ValueError as error:
        raise BundleError(f"{name} cannot be opened: {error}") from error
    if external:
        raise BundleError(f"{name} has weights in a file of their own; export it with all weights inside")
    providers = device.providers(device_bytes)
    try:
        if device.provider != CUDA:
            return weights.open(content, spec.outputs, functools.partial(_options, threads), providers)
        # ONNX Runtime's own fallback prints to stdout, and moves a session to the CPU while it serves.
        content = cut(content, spec.outputs)
        return ort.InferenceSession(content, _options(threads, True), providers=providers, enable_fallback=0)
    except Exception as error:
        where = f" with CUDA on GPU {device.index}" if device.provider == CUDA else ""
        raise BundleError(f"{name} cannot be opened{where}: {one_line(error)}") from error


def _options(threads: int, computes: bool) -> Any:
    """Return the options of a session, which computes or only optimises its graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait for each other by spinning take the cores from all others of the server: 18 ms of processor time
    # instead of 11 for 3 s of audio where they are busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    # Memory patterns by shape help where the same few shapes come again, and only take memory otherwise.
    options.enable_mem_pattern = False
    if computes:
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    else:
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False
    return options


@functools.cache
def _warn_of_cpu(reason: str) -> None:
    """Log once per reason that models run on the CPU although CUDA was hoped for."""
    log.warning("CUDA is installed and not used, models run on the CPU: %s", reason)


@functools.cache
def _share_arena() -> None:
    """Use one arena of CPU memory for all graphs of the process, of which one at a time computes.

    Otherwise each would keep an arena of its own, as large as its largest batch was.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(ARENA))
