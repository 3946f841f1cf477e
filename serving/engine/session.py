"""Sessions of ONNX Runtime for a bundle's graphs: opened, checked and warmed up; batches in, results out.

Utterances are padded with zeros to the length of a bucket. The graph's `lengths` input makes the padding invisible, and
the frames of the padding are cut off.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import SAMPLE_RATE, Bundle, BundleError
from speakerlens.serving.engine.buckets import DEFAULT_LIMITS, BatchLimits, Buckets, cpu_buckets, cuda_buckets
from speakerlens.serving.engine.gpu import DeviceSession, balance_of, gate, pinned_memory
from speakerlens.serving.engine.graphs import (
    COMMON_INPUTS,
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
    Prediction,
    ResultT,
    Row,
    check_fits,
)
from speakerlens.serving.engine.placement import (
    Device,
    InstanceSession,
    Occupancy,
    Placement,
    SharedWeights,
    find_gpus,
    one_line,
    open_graph,
    open_on_gpu,
)

log = logging.getLogger(__name__)

# Parts of the messages of ONNX Runtime, its arena and CUDA when memory ran out; their errors have no own type.
MEMORY_WORDS = ("failed to allocate", "out of memory", "bad_alloc", "available memory of")


_occupancy = Occupancy()


@dataclass(frozen=True)
class BatchInputs(Generic[JobT]):
    """Inputs of a graph by name, each [rows, ...]; there may be more rows than jobs.

    Attributes:
        jobs: of the batch.
        arrays: the inputs.
        uploaded: the same on the GPU, if there is one alone and they are there.
    """

    jobs: Sequence[JobT]
    arrays: dict[str, NDArray[Any]] = field(repr=False)
    uploaded: Mapping[str, Any] | None = field(default=None, repr=False)


# Returns outputs by their names, from inputs by name, in host memory and, if they are there, on the GPU.
Compute = Callable[[Sequence[str], Row, Mapping[str, Any] | None], Sequence[NDArray[Any]]]


class GraphSession(Generic[JobT, ResultT]):
    """An open graph; the work of a batcher.

    On the CPU with several instances the graph is opened twice, with the same weights: a batch that is computed alone
    takes all threads, batches that are computed at the same time take their part of them each, once the second session
    is open. On GPUs it is open once on each.

    Args:
        spec: which graph.
        bundle: where it is.
        placement: where it runs.
        limits: of batches.
        weights: shared with the bundle's other graphs; None for its own.
        scores: the session of `predict`, if its scores replace the graph's own; None if the graph's stay.

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
        placement: Placement,
        limits: BatchLimits = DEFAULT_LIMITS,
        weights: SharedWeights | None = None,
        scores: "GraphSession[Job, Prediction] | None" = None,
    ) -> None:
        self._spec = spec
        self._scores = scores
        self._bundle = bundle
        self._placement = placement
        self.measured = (0.0, 0.0)
        self._devices = find_gpus(placement.device)
        self._captures = placement.cuda_graphs and placement.instances <= len(self._devices)
        self.buckets: Buckets = (cuda_buckets if self._devices else cpu_buckets)(limits)
        self._gpus: Sequence[DeviceSession] = ()
        self.open(weights or SharedWeights())

    @property
    def devices(self) -> Sequence[DeviceSession]:
        """The graph on each GPU; none on the CPU."""
        return self._gpus

    @property
    def provider(self) -> str:
        """The execution provider that runs the graph, such as CPUExecutionProvider."""
        session = self._gpus[0].session if self._gpus else self._session
        return str(session.get_providers()[0])

    def open(self, weights: SharedWeights) -> None:
        """Open the graph, after closing what was open before; raises as the class does."""
        self._captures = self._captures and not any(gpu.failed for gpu in self._gpus)
        self._gpus = ()  # their memory is needed
        self._session: Any = None
        self._beside: InstanceSession | None = None
        if self._devices:
            self._gpus = tuple(self._opened_on(device) for device in self._devices)
            return
        session, beside = open_graph(self._bundle, self._spec, self._placement, weights)
        check_fits(session, self._bundle, self._spec)
        self._session, self._beside = session, beside

    def _opened_on(self, device: Device) -> DeviceSession:
        """Return the graph on a GPU, without CUDA graphs where ONNX Runtime cannot capture it."""
        try:
            with gate.shared():
                session = open_on_gpu(
                    self._bundle, self._spec, self._placement, device, self.buckets, graphs=self._captures
                )
        except BundleError as error:
            if not self._captures:
                raise
            log.warning("no CUDA graphs are used, batches are computed node by node: %s", error)
            self._captures = False
            return self._opened_on(device)
        check_fits(session, self._bundle, self._spec)
        shapes = self.buckets.warm if self._captures else ()
        return DeviceSession(session, device.place, shapes, f"{self._bundle.name} {self._spec.file}")

    def cost(self, job: JobT) -> int:
        """Return the number of samples that are computed for a job, padding included."""
        return self.buckets.length(len(job.audio))

    def prepare(self, jobs: Sequence[JobT]) -> BatchInputs[JobT]:
        """Return the inputs of a batch; runs in any thread."""
        lengths = [len(job.audio) for job in jobs]
        # Rows that only fill the batch up repeat its first.
        rows = [*jobs, *[jobs[0]] * (self.buckets.rows(len(jobs)) - len(jobs))]
        zeros = pinned_memory(self._devices[0].index).zeros if self._gpus else _zeros
        audio = zeros((len(rows), self.buckets.length(max(lengths))))
        for row, job in zip(audio, rows, strict=True):
            row[: len(job.audio)] = job.audio
        samples = np.array([len(job.audio) for job in rows], np.int64)
        arrays: dict[str, NDArray[Any]] = {"audio": audio, "lengths": samples, **self._spec.make_inputs(rows)}
        return BatchInputs(jobs, arrays, self._uploaded(arrays))

    def _uploaded(self, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, Any] | None:
        """Return inputs on the GPU, where they are copied while another batch is computed; None if that cannot be."""
        if len(self._gpus) != 1 or self._gpus[0].captures or self._scores is not None:
            return None  # it is not known which GPU will compute, or values have other places, or will be others
        try:
            return self._gpus[0].upload(arrays)
        except Exception:  # noqa: BLE001 - it is repeated when the batch is computed, and raises there
            return None

    def compute(self, inputs: BatchInputs[JobT]) -> list[ResultT]:
        """Return the results of a batch, one for each job in order.

        Raises:
            MemoryError: the device has too little memory for it.
        """
        return self._results(inputs, self._compute)

    def _results(self, inputs: BatchInputs[JobT], compute: Compute) -> list[ResultT]:
        """Return the results of a batch whose outputs `compute` returns; raises as `compute` of the class."""
        try:
            outputs = self.run(inputs.arrays, compute, inputs.uploaded)
        except Exception as error:
            if any(words in str(error).lower() for words in MEMORY_WORDS):
                raise MemoryError(f"{self._spec.file}: {one_line(error)}") from error
            raise
        results = []
        for row, job in enumerate(inputs.jobs):
            values = {name: output[row] for name, output in outputs.items()}
            results.append(self._spec.make_result(self._bundle, job, values))
        return results

    def run(
        self, arrays: Row, compute: Compute | None = None, uploaded: Mapping[str, Any] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs of a batch by name, each [rows, ...].

        Args:
            arrays: the inputs; others are left out.
            compute: runs the graph; None: on a free device.
            uploaded: the inputs on the GPU, if they are there.
        """
        scores: Row = {}
        if self._scores is not None:
            scores = self._scores.run(arrays)
            arrays = self._spec.inputs_by(arrays, scores)
        given = {name: arrays[name] for name in (*COMMON_INPUTS, *self._spec.inputs)}
        outputs = (compute or self._compute)(self._spec.outputs, given, uploaded)
        named = dict(zip(self._spec.outputs, outputs, strict=True))
        return {**named, **self._spec.outputs_by(arrays, scores)} if scores else named

    def _compute(
        self, names: Sequence[str], arrays: Row, uploaded: Mapping[str, Any] | None = None
    ) -> Sequence[NDArray[Any]]:
        if self._gpus:
            with balance_of(len(self._gpus)).batch() as number:
                return self._gpus[number].run(names, arrays, uploaded)
        with _occupancy.batch() as alone:
            session = self._session if alone or self._beside is None else self._beside.get()
            outputs: Sequence[NDArray[Any]] = session.run(names, arrays)
            return outputs

    def probe(self) -> None:
        """Compute a job that has worked before; raise what it raises."""
        self._try(1, self._bundle.min_samples, self._compute)

    def warm_up(self) -> int:
        """Compute every shape that traffic will have, rows of different lengths among them; return their number.

        Raises:
            BundleError: the graph fails, or gives results of other shapes than the bundle says.
        """
        if self._gpus:
            return sum(self._warm_up(gpu.run_plain) for gpu in self._gpus)
        return self._warm_up(self._compute)

    def _warm_up(self, compute: Compute) -> int:
        """Do so on one device; raises as `warm_up`."""
        shortest = self._bundle.min_samples
        shapes = [(rows, samples) for rows, samples in self.buckets.warm if samples >= shortest] or [(1, shortest)]
        longest = max(samples for rows, samples in shapes if rows == 1)
        if not self._gpus:  # where the first time is as fast as others
            shapes = [shape for shape in shapes if shape != (1, longest) and not self._spec.brief]
        try:
            for rows, samples in shapes:
                self._try_within_memory(rows, samples, compute)
            started = time.monotonic()
            self._try(1, longest, compute)
            self.measured = (float(self.buckets.length(longest)), time.monotonic() - started)
        except BundleError:
            raise
        except Exception as error:  # the errors of ONNX Runtime have no common base
            raise BundleError(f"{self._spec.file} fails at warm-up: {one_line(error)}") from error
        return len({*shapes, (1, longest)})

    def _try_within_memory(self, rows: int, samples: int, compute: Compute) -> None:
        """Compute a shape; if a GPU has too little memory for it, batches are smaller from now on."""
        if rows > 1 and rows * samples > self.buckets.batch_samples:
            return
        try:
            self._try(rows, samples, compute)
        except MemoryError as error:
            if not self._gpus or rows == 1:
                raise
            self.buckets = self.buckets.within(rows * samples - 1)
            seconds = self.buckets.batch_samples / SAMPLE_RATE
            log.warning("%s: batches have at most %.1f s of audio: %s", self._spec.file, seconds, one_line(error))

    def _try(self, rows: int, samples: int, compute: Compute) -> None:
        """Compute one row of `samples` samples and shorter ones in the other rows; check the shapes of the results."""
        noise = _noise(samples)
        shorter = noise[: max(self._bundle.min_samples, samples - SAMPLE_RATE // 10)]
        jobs = [self._spec.example(self._bundle, audio) for audio in [noise, *[shorter] * (rows - 1)]]
        for job, result in zip(jobs, self._results(self.prepare(jobs), compute), strict=True):
            actual = [value.shape for value in result.arrays()]
            expected = self._spec.shapes(self._bundle, len(job.audio))
            if actual != expected:
                raise BundleError(
                    f"{self._spec.file} answers {len(job.audio)} samples with shapes {actual}, not {expected}"
                )


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def _noise(samples: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.05, samples).astype(np.float32)


class Engine:
    """The open graphs of a bundle.

    Args:
        bundle: what to load.
        placement: where they run.
        limits: of batches.

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
        placement: Placement,
        limits: BatchLimits = DEFAULT_LIMITS,
    ) -> None:
        self._bundle = bundle
        plain = PREDICT_SPEC if bundle.has_classifier else EMBED_SPEC
        weights = SharedWeights()

        self.predict = GraphSession(plain, bundle, placement, limits, weights)

        def opened(spec: GraphSpec[JobT, ResultT]) -> GraphSession[JobT, ResultT]:
            scores = self.predict if bundle.borrows_scores(spec.file) else None
            return GraphSession(spec, bundle, placement, limits, weights, scores)

        self.explainers: Mapping[str, GraphSession[Job, ExplainedPrediction]] = {
            lowest: opened(EXPLAIN_SPECS[lowest]) for lowest in (LOWEST_STAGES if bundle.has_classifier else ())
        }
        self.verifiers: Mapping[str, GraphSession[ComparedJob, Comparison]] = {
            lowest: opened(VERIFY_SPECS[lowest]) for lowest in LOWEST_STAGES
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
