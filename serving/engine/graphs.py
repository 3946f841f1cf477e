"""The graphs of a bundle: what each takes and answers, opened and warmed up together.

Another graph is another `GraphSpec`, another attribute of `Engine`, and another queue in `serving.models.loader`.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import EXPLAIN, PREDICT, VERIFY, Bundle
from speakerlens.serving.engine.buckets import DEFAULT_LIMITS, Limits
from speakerlens.serving.engine.session import Graph, GraphSpec, Row

log = logging.getLogger(__name__)

PREDICTED = -1
SALIENCY = ("saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4")


@dataclass(frozen=True)
class Job:
    """One utterance: float32 [samples] at 16 kHz; `target` is the label to explain, or PREDICTED."""

    audio: NDArray[np.float32]
    target: int = PREDICTED


@dataclass(frozen=True)
class ComparedJob:
    """One utterance, and what its embedding is compared with: float32 [size], of any length."""

    audio: NDArray[np.float32]
    reference: NDArray[np.float32]


class Mapped(Protocol):
    """What has maps: features [mel, frames], and the raw map of each stage [rows, columns]."""

    @property
    def features(self) -> NDArray[np.float32]:
        """The log-mel that the network saw."""

    @property
    def saliency(self) -> tuple[NDArray[np.float32], ...]:
        """The maps, S1 first."""


@dataclass(frozen=True)
class Prediction:
    """Scores of one utterance: logits [speakers], embedding [size]."""

    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]

    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """Everything that the graph computed."""
        return self.logits, self.embedding


@dataclass(frozen=True)
class ExplainedPrediction(Prediction):
    """The same with the explained label, features [mel, frames], and the raw map of each stage [rows, columns]."""

    target: int
    features: NDArray[np.float32]
    saliency: tuple[NDArray[np.float32], ...]

    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """Everything that the graph computed."""
        return *super().arrays(), self.features, *self.saliency


@dataclass(frozen=True)
class Comparison:
    """The cosine to a reference, and the maps of that score; the rest as of `ExplainedPrediction`."""

    embedding: NDArray[np.float32]
    score: float
    features: NDArray[np.float32]
    saliency: tuple[NDArray[np.float32], ...]

    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """Everything that the graph computed, but for the score."""
        return self.embedding, self.features, *self.saliency


def _job(_bundle: Bundle, audio: NDArray[np.float32]) -> Job:
    return Job(audio)


def _nothing(_jobs: Sequence[Job]) -> dict[str, NDArray[Any]]:
    return {}


def _prediction(_bundle: Bundle, _job: Job, row: Row) -> Prediction:
    return Prediction(row["logits"], row["embedding"])


def _score_shapes(bundle: Bundle, _samples: int) -> list[tuple[int, ...]]:
    return [(len(bundle.speakers),), (bundle.embedding_size,)]


def _targets(jobs: Sequence[Job]) -> dict[str, NDArray[Any]]:
    return {"target": np.array([job.target for job in jobs], np.int64)}


def _explained(bundle: Bundle, job: Job, row: Row) -> ExplainedPrediction:
    target = int(row["logits"].argmax()) if job.target == PREDICTED else job.target
    return ExplainedPrediction(row["logits"], row["embedding"], target, *_maps(bundle, len(job.audio), row))


def _maps(bundle: Bundle, samples: int, row: Row) -> tuple[NDArray[np.float32], tuple[NDArray[np.float32], ...]]:
    """Features and maps without what the graph says of the padding."""
    saliency = tuple(
        row[name][:, : bundle.columns(samples, stage)] for name, stage in zip(SALIENCY, bundle.stages, strict=True)
    )
    return row["features"][:, : bundle.frames(samples)], saliency


def _explained_shapes(bundle: Bundle, samples: int) -> list[tuple[int, ...]]:
    return [*_score_shapes(bundle, samples), *_map_shapes(bundle, samples)]


def _map_shapes(bundle: Bundle, samples: int) -> list[tuple[int, ...]]:
    maps = [(stage.rows, bundle.columns(samples, stage)) for stage in bundle.stages]
    return [(bundle.mel_bins, bundle.frames(samples)), *maps]


def _compared_job(bundle: Bundle, audio: NDArray[np.float32]) -> ComparedJob:
    return ComparedJob(audio, np.ones(bundle.embedding_size, np.float32))


def _references(jobs: Sequence[ComparedJob]) -> dict[str, NDArray[Any]]:
    return {"reference": np.stack([job.reference for job in jobs])}


def _comparison(bundle: Bundle, job: ComparedJob, row: Row) -> Comparison:
    return Comparison(row["embedding"], float(row["score"]), *_maps(bundle, len(job.audio), row))


def _compared_shapes(bundle: Bundle, samples: int) -> list[tuple[int, ...]]:
    return [(bundle.embedding_size,), *_map_shapes(bundle, samples)]


PREDICT_SPEC: Final = GraphSpec(
    file=PREDICT,
    outputs=("logits", "embedding"),
    inputs={},
    feeds=_nothing,
    answer=_prediction,
    example=_job,
    shapes=_score_shapes,
)
EXPLAIN_SPEC: Final = GraphSpec(
    file=EXPLAIN,
    outputs=("logits", "embedding", "features", *SALIENCY),
    inputs={"target": ("tensor(int64)", 1)},
    feeds=_targets,
    answer=_explained,
    example=_job,
    shapes=_explained_shapes,
)
VERIFY_SPEC: Final = GraphSpec(
    file=VERIFY,
    outputs=("embedding", "score", "features", *SALIENCY),
    inputs={"reference": ("tensor(float)", 2)},
    feeds=_references,
    answer=_comparison,
    example=_compared_job,
    shapes=_compared_shapes,
)


class Engine:
    """The graphs of a bundle, open and checked.

    Args:
        bundle: what to load.
        device: `auto`, `cpu` or `cuda`.
        threads: of each graph on the CPU; 0 is one per core.
        limits: of batches.

    Raises:
        BundleError: a graph cannot be opened, or does not fit its bundle.
        StartupError: CUDA was asked for and does not work here.
    """

    def __init__(self, bundle: Bundle, device: str, threads: int, limits: Limits = DEFAULT_LIMITS) -> None:
        self._bundle = bundle
        self.predict = Graph(PREDICT_SPEC, bundle, device, threads, limits)
        self.explain = Graph(EXPLAIN_SPEC, bundle, device, threads, limits)
        self.verify = Graph(VERIFY_SPEC, bundle, device, threads, limits)
        self._graphs: tuple[Graph[Any, Any], ...] = (self.predict, self.explain, self.verify)

    @property
    def provider(self) -> str:
        """What the graphs really run on, such as CPUExecutionProvider."""
        return self.explain.provider

    def warm_up(self) -> None:
        """Runs every graph at the shapes that traffic will have.

        Raises:
            BundleError: a graph fails, or answers in other shapes than the bundle says.
        """
        started = time.monotonic()
        shapes = sum(graph.warm_up() for graph in self._graphs)
        log.info("warmed up %s: %d shapes in %.1f s", self._bundle.name, shapes, time.monotonic() - started)

    def reopen(self) -> None:
        """Open every graph again and warm it up; takes seconds, in any thread.

        Raises:
            BundleError: a graph does not work.
        """
        for graph in self._graphs:
            graph.open()
        self.warm_up()
