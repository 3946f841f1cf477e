"""ONNX Runtime behind two calls: `predict` and `explain`, for a batch of utterances of different lengths.

Utterances are padded with zeros to the longest; the graph's `lengths` input makes the padding invisible, and what the
graph says about padding is cut off again.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundles import EXPLAIN, PREDICT, Bundle, BundleError
from serving.errors import StartupError

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
PREDICTED = -1
SALIENCY = ("saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4")
PREDICT_OUTPUTS = ("logits", "embedding")
EXPLAIN_OUTPUTS = (*PREDICT_OUTPUTS, "features", *SALIENCY)
INPUTS = {"audio": ("tensor(float)", 2), "lengths": ("tensor(int64)", 1), "target": ("tensor(int64)", 1)}
WARM_UP_SECONDS = 3


@dataclass(frozen=True)
class Job:
    """One utterance: float32 [samples] at 16 kHz; `target` is the label to explain, or PREDICTED."""

    audio: NDArray[np.float32]
    target: int = PREDICTED


@dataclass(frozen=True)
class Prediction:
    """Scores of one utterance: logits [speakers], embedding [size]."""

    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]


@dataclass(frozen=True)
class ExplainedPrediction(Prediction):
    """The same with the explained label, features [mel, frames], and the raw map of each stage [rows, columns]."""

    target: int
    features: NDArray[np.float32]
    saliency: tuple[NDArray[np.float32], ...]


class Engine:
    """The two graphs of a bundle, open and checked.

    Args:
        bundle: what to load.
        device: `auto`, `cpu` or `cuda`.
        threads: of each graph on the CPU; 0 is one per core.

    Raises:
        BundleError: a graph cannot be opened, or does not fit its bundle.
        StartupError: CUDA was asked for and does not work here.
    """

    def __init__(self, bundle: Bundle, device: str, threads: int) -> None:
        self._bundle = bundle
        self._predict = _open(bundle, PREDICT, device, threads)
        self._explain = _open(bundle, EXPLAIN, device, threads)
        _check_graph(self._predict, bundle, PREDICT, ("audio", "lengths"), PREDICT_OUTPUTS)
        _check_graph(self._explain, bundle, EXPLAIN, ("audio", "lengths", "target"), EXPLAIN_OUTPUTS)

    @property
    def provider(self) -> str:
        """What the graphs really run on, such as CPUExecutionProvider."""
        return str(self._explain.get_providers()[0])

    def predict(self, jobs: Sequence[Job]) -> list[Prediction]:
        """Scores a batch; answer i belongs to job i."""
        audio, lengths = _pad(jobs)
        logits, embedding = self._predict.run(PREDICT_OUTPUTS, {"audio": audio, "lengths": lengths})
        return [Prediction(logits[row], embedding[row]) for row in range(len(jobs))]

    def explain(self, jobs: Sequence[Job]) -> list[ExplainedPrediction]:
        """Scores and explains a batch; answer i belongs to job i."""
        audio, lengths = _pad(jobs)
        targets = np.array([job.target for job in jobs], np.int64)
        logits, embedding, features, *maps = self._explain.run(
            EXPLAIN_OUTPUTS, {"audio": audio, "lengths": lengths, "target": targets}
        )
        answers = []
        for row, job in enumerate(jobs):
            samples = len(job.audio)
            saliency = tuple(
                stage_map[row, :, : self._bundle.columns(samples, stage)]
                for stage_map, stage in zip(maps, self._bundle.stages, strict=True)
            )
            valid = features[row, :, : self._bundle.frames(samples)]
            target = int(logits[row].argmax()) if job.target == PREDICTED else job.target
            answers.append(ExplainedPrediction(logits[row], embedding[row], target, valid, saliency))
        return answers

    def warm_up(self) -> None:
        """Runs both graphs at two lengths, alone and together, and checks the shapes of what comes out.

        Raises:
            BundleError: the graphs fail, or answer in other shapes than the bundle says.
        """
        noise = np.random.default_rng(0).normal(0, 0.05, WARM_UP_SECONDS * 16_000).astype(np.float32)
        short, usual = Job(noise[: self._bundle.min_samples]), Job(noise)
        try:
            for jobs in ([short], [usual], [short, usual]):
                self._check_shapes(jobs, self.predict(jobs), self.explain(jobs))
        except (RuntimeError, ValueError, IndexError) as error:
            raise BundleError(f"the graphs fail at warm-up: {' '.join(str(error).split())[:300]}") from error

    def _check_shapes(
        self, jobs: Sequence[Job], predicted: Sequence[Prediction], explained: Sequence[ExplainedPrediction]
    ) -> None:
        bundle = self._bundle
        for job, plain, answer in zip(jobs, predicted, explained, strict=True):
            samples = len(job.audio)
            actual = [plain.logits, answer.logits, plain.embedding, answer.embedding, answer.features, *answer.saliency]
            scores, embedding = (len(bundle.speakers),), (bundle.embedding_size,)
            maps = [(stage.rows, bundle.columns(samples, stage)) for stage in bundle.stages]
            expected = [scores, scores, embedding, embedding, (bundle.mel_bins, bundle.frames(samples)), *maps]
            shapes = [value.shape for value in actual]
            if shapes != expected:
                raise BundleError(f"the graphs answer {samples} samples with shapes {shapes}, not {expected}")


def runtime_version() -> str:
    """Version of ONNX Runtime."""
    return str(ort.__version__)


def _open(bundle: Bundle, name: str, device: str, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers: list[Any] = [CPU]
    if device != "cpu" and CUDA in ort.get_available_providers():
        providers.insert(0, (CUDA, CUDA_OPTIONS))
    try:
        # From memory, which refuses weights in files of their own: those stay mapped for as long as the graph is open,
        # and whoever overwrites such a file changes answers, or ends the process.
        session = ort.InferenceSession((bundle.folder / name).read_bytes(), options, providers=providers)
    except Exception as error:
        raise BundleError(f"{name} cannot be opened: {' '.join(str(error).split())[:300]}") from error
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise StartupError(f"--device cuda: this ONNX Runtime runs on {session.get_providers()[0]} here")
    return session


def _check_graph(session: Any, bundle: Bundle, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    actual = {node.name: (node.type, len(node.shape)) for node in session.get_inputs()}
    expected = {key: INPUTS[key] for key in inputs}
    if actual != expected:
        raise BundleError(f"{name} takes {actual}, not {expected}")
    missing = sorted(set(outputs) - {node.name for node in session.get_outputs()})
    if missing:
        raise BundleError(f"{name} has no output {', '.join(missing)}")
    metadata = session.get_modelmeta().custom_metadata_map
    # A graph of another network answers in the right shapes as well, under the wrong names.
    for key, value in (("variant", bundle.variant), ("version", bundle.version), ("speakers", list(bundle.speakers))):
        if _fact(metadata.get(key)) != value:
            raise BundleError(f"{name} is of another bundle: its metadata disagrees with bundle.json about {key}")


def _fact(text: str | None) -> Any:
    """A fact in a graph's metadata, which is JSON; None if it is missing or anything else."""
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def _pad(jobs: Sequence[Job]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    lengths = np.array([len(job.audio) for job in jobs], np.int64)
    audio = np.zeros((len(jobs), int(lengths.max())), np.float32)
    for row, job in zip(audio, jobs, strict=True):
        row[: len(job.audio)] = job.audio
    return audio, lengths
