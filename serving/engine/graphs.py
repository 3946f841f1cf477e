"""Jobs and results of a bundle's graphs, and what each graph takes and gives.

A network without a classifier has no graph that explains a speaker, and its prediction has no logits.

A file is opened once for each lowest stage of LOWEST_STAGES, cut down to what the maps from there on need: the gradient
of a lower stage goes through all above it (3 s on a ResNet-34: S4 costs as much as no map, S2 to S4 1.6 times as much,
all 1.9 times). All arrays of jobs and results are without padding.

A new graph is a new `GraphSpec`, an attribute of `serving.engine.session.Engine`, and a batcher in
`serving.models.loader`.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import EXPLAIN, PREDICT, STAGES, VERIFY, Bundle, BundleError, StageSpec

# The `target` that explains the predicted speaker.
PREDICTED = -1
SALIENCY = ("saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4")
# Type and number of axes of the inputs that every graph takes: samples [rows, samples], and how many are valid [rows].
COMMON_INPUTS: Final = {"audio": ("tensor(float)", 2), "lengths": ("tensor(int64)", 1)}
# The stages from which maps can be had without those below, the dearest first.
LOWEST_STAGES = ("s1", "s2", "s4")


class Utterance(Protocol):
    """Part of every job."""

    @property
    def audio(self) -> NDArray[np.float32]:
        """Samples, float32 [samples] at 16 kHz."""


class Arrays(Protocol):
    """Part of every result."""

    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """Return every array that a graph computed."""


JobT = TypeVar("JobT", bound=Utterance)
ResultT = TypeVar("ResultT", bound=Arrays)
# Arrays by the name of an input or output of a graph: of one row, or of a batch [rows, ...]; padding included.
Row = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class GraphSpec(Generic[JobT, ResultT]):
    """What is particular to a graph.

    Attributes:
        file: name in the bundle.
        outputs: names of the outputs to compute, each [rows, ...].
        inputs: type and number of axes by name, beside `audio` [rows, samples] and `lengths` [rows].
        make_inputs: returns the values of those inputs for a batch, each [rows, ...].
        make_result: returns the result of a job from its row.
        example: returns a job for a waveform, for the warm-up.
        shapes: returns the shapes of a result's `arrays()` for a number of samples.
        brief: whether the warm-up computes one shape alone, as another graph of the same file computes all.
        inputs_by: returns the inputs of a batch, from the inputs and the outputs of `predict`, where those replace the
            graph's own scores.
        outputs_by: returns the outputs that are replaced, from the same.
    """

    file: str
    outputs: tuple[str, ...]
    inputs: Mapping[str, tuple[str, int]]
    make_inputs: Callable[[Sequence[JobT]], dict[str, NDArray[Any]]]
    make_result: Callable[[Bundle, JobT, Row], ResultT]
    example: Callable[[Bundle, NDArray[np.float32]], JobT]
    shapes: Callable[[Bundle, int], list[tuple[int, ...]]]
    brief: bool = False
    inputs_by: Callable[[Row, Row], Row] = lambda inputs, _scores: inputs
    outputs_by: Callable[[Row, Row], Row] = lambda _inputs, scores: scores


@dataclass(frozen=True)
class Job:
    """One utterance, float32 [samples] at 16 kHz, and the speaker to explain: an index of the labels, or PREDICTED."""

    audio: NDArray[np.float32]
    target: int = PREDICTED


@dataclass(frozen=True)
class ComparedJob:
    """One utterance, float32 [samples] at 16 kHz, and the embedding to compare it with: float32 [size], of any norm."""

    audio: NDArray[np.float32]
    reference: NDArray[np.float32]


class Mapped(Protocol):
    """A result with saliency maps."""

    @property
    def features(self) -> NDArray[np.float32]:
        """Log-mel input of the network, float32 [mel, frames]."""

    @property
    def saliency(self) -> tuple[NDArray[np.float32], ...]:
        """Raw LayerCAM map of each stage from the lowest that was asked for on, float32 [rows, columns]."""


@dataclass(frozen=True)
class Prediction:
    """Scores of one utterance: logits, float32 [speakers], and embedding, float32 [size]."""

    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]

    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """Return every array that the graph computed."""
        return self.logits, self.embedding


@dataclass(frozen=True)
class ExplainedPrediction(Prediction):
    """A prediction with the explained speaker, an index of the labels, and the maps as in `Mapped`.

    Attributes:
        shown: maps at [mel, frames] by name, 0 to 1, once they were made for the answer.
    """

    target: int
    features: NDArray[np.float32]
    saliency: tuple[NDArray[np.float32], ...]
    shown: dict[str, NDArray[np.float32]] = field(default_factory=dict, compare=False, repr=False)

    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """Return every array that the graph computed."""
        return *super().arrays(), self.features, *self.saliency


@dataclass(frozen=True)
class Comparison:
    """The cosine similarity to a reference, and the maps of that score as in `Mapped`."""

    embedding: NDArray[np.float32]
    score: float
    features: NDArray[np.float32]
    saliency: tuple[NDArray[np.float32], ...]

    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """Return every array that the graph computed."""
        return self.embedding, self.features, *self.saliency


def _job(_bundle: Bundle, audio: NDArray[np.float32]) -> Job:
    return Job(audio)


def _no_inputs(_jobs: Sequence[Job]) -> dict[str, NDArray[Any]]:
    return {}


def _prediction(_bundle: Bundle, _job: Job, row: Row) -> Prediction:
    return Prediction(row["logits"], row["embedding"])


def _embedding(_bundle: Bundle, _job: Job, row: Row) -> Prediction:
    return Prediction(np.empty(0, np.float32), row["embedding"])


def _score_shapes(bundle: Bundle, _samples: int) -> list[tuple[int, ...]]:
    return [(len(bundle.speakers),), (bundle.embedding_size,)]


def _targets(jobs: Sequence[Job]) -> dict[str, NDArray[Any]]:
    return {"target": np.array([job.target for job in jobs], np.int64)}


def _explained(bundle: Bundle, job: Job, row: Row) -> ExplainedPrediction:
    target = int(row["logits"].argmax()) if job.target == PREDICTED else job.target
    return ExplainedPrediction(row["logits"], row["embedding"], target, *_maps(bundle, len(job.audio), row))


def _explained_by(inputs: Row, scores: Row) -> Row:
    """Return the inputs of `explain` whose predicted speakers are those of these scores."""
    target = inputs["target"]
    return {**inputs, "target": np.where(target == PREDICTED, scores["logits"].argmax(axis=1), target)}


def _compared_by(inputs: Row, scores: Row) -> Row:
    """Return embedding and cosine of a comparison by these scores; the cosine as the graph computes it."""
    embedding, reference = scores["embedding"], inputs["reference"]
    units = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (embedding, reference)]
    return {"embedding": embedding, "score": (units[0] * units[1]).sum(axis=1)}


def _maps(bundle: Bundle, samples: int, row: Row) -> tuple[NDArray[np.float32], tuple[NDArray[np.float32], ...]]:
    """Return features and maps without the frames of the padding."""
    saliency = tuple(
        row[name][:, : bundle.columns(samples, stage)]
        for name, stage in zip(SALIENCY, bundle.stages, strict=True)
        if name in row
    )
    return row["features"][:, : bundle.frames(samples)], saliency


def _explained_shapes(lowest: str, bundle: Bundle, samples: int) -> list[tuple[int, ...]]:
    return [*_score_shapes(bundle, samples), *_map_shapes(lowest, bundle, samples)]


def _map_shapes(lowest: str, bundle: Bundle, samples: int) -> list[tuple[int, ...]]:
    stages = bundle.stages[STAGES.index(lowest) :]
    maps = [(stage.rows, bundle.columns(samples, stage)) for stage in stages]
    return [(bundle.mel_bins, bundle.frames(samples)), *maps]


def _compared_job(bundle: Bundle, audio: NDArray[np.float32]) -> ComparedJob:
    return ComparedJob(audio, np.ones(bundle.embedding_size, np.float32))


def _references(jobs: Sequence[ComparedJob]) -> dict[str, NDArray[Any]]:
    return {"reference": np.stack([job.reference for job in jobs])}


def _comparison(bundle: Bundle, job: ComparedJob, row: Row) -> Comparison:
    return Comparison(row["embedding"], float(row["score"]), *_maps(bundle, len(job.audio), row))


def _compared_shapes(lowest: str, bundle: Bundle, samples: int) -> list[tuple[int, ...]]:
    return [(bundle.embedding_size,), *_map_shapes(lowest, bundle, samples)]


def mapped_stages(bundle: Bundle, answer: Mapped) -> list[tuple[StageSpec, NDArray[np.float32]]]:
    """Return the stages of which an answer has maps, S1 first, each with its raw map [rows, columns]."""
    return list(zip(bundle.stages[-len(answer.saliency) :], answer.saliency, strict=True))


def has_fused(bundle: Bundle, answer: Mapped) -> bool:
    """Return whether an answer has the maps of every fused stage."""
    return {*bundle.fused_stages} <= {stage.name for stage, _ in mapped_stages(bundle, answer)}


def lowest_stage(bundle: Bundle, stages: Collection[str]) -> str:
    """Return which of LOWEST_STAGES has maps of all these stages, `fused` among them or not, at the least cost."""
    wanted = {*stages, *(bundle.fused_stages if "fused" in stages else ())} - {"fused"}
    return [lowest for lowest in LOWEST_STAGES if all(lowest <= stage for stage in wanted)][-1]


PREDICT_SPEC: Final = GraphSpec(
    file=PREDICT,
    outputs=("logits", "embedding"),
    inputs={},
    make_inputs=_no_inputs,
    make_result=_prediction,
    example=_job,
    shapes=_score_shapes,
)
EMBED_SPEC: Final = GraphSpec(
    file=PREDICT,
    outputs=("embedding",),
    inputs={},
    make_inputs=_no_inputs,
    make_result=_embedding,
    example=_job,
    shapes=_score_shapes,
)
EXPLAIN_SPECS: Final[Mapping[str, GraphSpec[Job, ExplainedPrediction]]] = {
    lowest: GraphSpec(
        file=EXPLAIN,
        outputs=("logits", "embedding", "features", *SALIENCY[STAGES.index(lowest) :]),
        inputs={"target": ("tensor(int64)", 1)},
        make_inputs=_targets,
        make_result=_explained,
        example=_job,
        shapes=partial(_explained_shapes, lowest),
        brief=lowest != LOWEST_STAGES[0],
        inputs_by=_explained_by,
    )
    for lowest in LOWEST_STAGES
}
VERIFY_SPECS: Final[Mapping[str, GraphSpec[ComparedJob, Comparison]]] = {
    lowest: GraphSpec(
        file=VERIFY,
        outputs=("embedding", "score", "features", *SALIENCY[STAGES.index(lowest) :]),
        inputs={"reference": ("tensor(float)", 2)},
        make_inputs=_references,
        make_result=_comparison,
        example=_compared_job,
        shapes=partial(_compared_shapes, lowest),
        brief=lowest != LOWEST_STAGES[0],
        outputs_by=_compared_by,
    )
    for lowest in LOWEST_STAGES
}


def check_finite(name: str, result: Arrays) -> None:
    """Check that a model's result holds neither NaN nor infinity.

    Raises:
        FloatingPointError: it does; names the model.
    """
    if not all(np.isfinite(values).all() for values in result.arrays()):
        raise FloatingPointError(f"{name} answered with NaN or infinity")


def check_fits(session: Any, bundle: Bundle, spec: GraphSpec[Any, Any]) -> None:
    """Check the inputs, outputs and metadata of an open graph.

    Raises:
        BundleError: they are not those of the bundle's graph.
    """
    actual = {node.name: (node.type, len(node.shape)) for node in session.get_inputs()}
    expected = {**COMMON_INPUTS, **spec.inputs}
    if actual != expected:
        raise BundleError(f"{spec.file} takes {actual}, not {expected}")
    missing = sorted(set(spec.outputs) - {node.name for node in session.get_outputs()})
    if missing:
        raise BundleError(f"{spec.file} has no output {', '.join(missing)}")
    metadata = session.get_modelmeta().custom_metadata_map
    # The graph of another network gives results of the right shapes as well, under the wrong names.
    for key, value in (("variant", bundle.variant), ("version", bundle.version), ("speakers", list(bundle.speakers))):
        if _fact(metadata.get(key)) != value:
            raise BundleError(f"{spec.file} is of another bundle: its metadata disagrees with bundle.json about {key}")


def _fact(text: str | None) -> Any:
    """Return a value of a graph's metadata, which is JSON; None if it is missing or not JSON."""
    try:
        return json.loads(text or "null")
    except ValueError:
        return None
