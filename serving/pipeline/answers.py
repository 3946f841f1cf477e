"""Answers of an identification: speakers with probabilities, maps and a timeline, or how the model failed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import ThresholdBasis
from speakerlens.serving.context import Timings
from speakerlens.serving.engine.graphs import ExplainedPrediction, Prediction
from speakerlens.serving.errors import RequestError
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import ModelOutput, softmax
from speakerlens.serving.pipeline.explain import Explanation, explain
from speakerlens.serving.pipeline.query import DEFAULT_TOP_K, QueryOptions
from speakerlens.serving.pipeline.samples import AudioInfo
from speakerlens.serving.pipeline.timeline import SpeakerTurn


@dataclass(frozen=True)
class SpeakerScore:
    """A speaker's calibrated probability and logit."""

    speaker: str
    probability: float
    logit: float


@dataclass(frozen=True)
class Segment:
    """A speaker turn, in seconds from the beginning; `known` is whether its mean logit reaches the threshold."""

    start_s: float
    end_s: float
    speaker: str
    probability: float
    known: bool


@dataclass(frozen=True)
class Answer:
    """Answer of one model.

    Attributes:
        variant: of the model.
        version: of the model.
        speakers: the top-k speakers, best first.
        known: whether the top logit reaches the open-set threshold.
        explanation: saliency maps, if the query asks for them.
        embedding: float32 [size], if the query asks for it.
        timeline: speaker turns; empty for audio of a single window, and for audio without speech.
        turn: of a stream's window with speech: the turn that it is part of.
        threshold_basis: whose utterances the threshold rests on.
    """

    variant: str
    version: int
    speakers: tuple[SpeakerScore, ...]
    known: bool
    explanation: Explanation | None
    embedding: NDArray[np.float32] | None
    timeline: tuple[Segment, ...] = ()
    turn: Segment | None = None
    threshold_basis: ThresholdBasis = ThresholdBasis.OUT_OF_SET


@dataclass(frozen=True)
class Failed:
    """Error of one model while another answered."""

    variant: str
    version: int
    error: Exception

    @property
    def code(self) -> str:
        """Return the name of a gRPC status."""
        return self.error.code if isinstance(self.error, RequestError) else "INTERNAL"

    @property
    def message(self) -> str:
        """Return a sentence for the client; details of internal errors stay in the log."""
        if isinstance(self.error, RequestError):
            return str(self.error)
        return f"{self.variant}/{self.version} failed; the server's log says how"


@dataclass(frozen=True)
class Identification:
    """Answers in the order of the models asked, the audio as received, and the seconds of each phase."""

    answers: tuple[Answer | Failed, ...]
    audio: AudioInfo
    timings: Timings


@dataclass(frozen=True)
class WindowAnswer:
    """Answers for one window of a stream, in seconds from its beginning; empty without speech."""

    start_s: float
    end_s: float
    speech: bool
    answers: tuple[Answer | Failed, ...]
    timings: Timings


def answer_of(query: QueryOptions, model: Model, output: ModelOutput | Exception, start: int = 0) -> Answer | Failed:
    """Return the answer from a model's output for audio that begins at sample `start`; slow where maps are encoded."""
    bundle = model.bundle
    if isinstance(output, Exception):
        return Failed(bundle.variant, bundle.version, output)
    prediction = output.prediction
    if not bundle.has_classifier:
        embedding = prediction.embedding if query.with_embedding else None
        return Answer(bundle.variant, bundle.version, (), False, None, embedding, threshold_basis=ThresholdBasis.NONE)
    best = largest(prediction.logits, query.top_k or DEFAULT_TOP_K)
    probabilities = softmax(prediction.logits / bundle.temperature)[best]
    explanation = None
    if query.explain is not None and isinstance(prediction, ExplainedPrediction):
        explanation = explain(bundle, prediction, query.explain, start)
    return Answer(
        variant=bundle.variant,
        version=bundle.version,
        speakers=tuple(
            SpeakerScore(bundle.speakers[label], probability, float(prediction.logits[label]))
            for label, probability in zip(best.tolist(), probabilities.tolist(), strict=True)
        ),
        known=known(model, prediction),
        explanation=explanation,
        embedding=prediction.embedding if query.with_embedding else None,
        timeline=tuple(_segment(model, turn) for turn in output.timeline),
        turn=None if output.turn is None else _segment(model, output.turn),
        threshold_basis=bundle.classification.basis,
    )


def _segment(model: Model, turn: SpeakerTurn) -> Segment:
    speaker, threshold = model.bundle.speakers[turn.label], model.bundle.classification.threshold
    return Segment(turn.start_s, turn.end_s, speaker, turn.probability, turn.score >= threshold)


def known(model: Model, prediction: Prediction) -> bool:
    """Return whether the score of the speaker with the best logit reaches the open-set threshold."""
    best = int(prediction.logits.argmax())
    score = model.bundle.open_set_score(prediction.logits, prediction.embedding, best)
    return score >= model.bundle.classification.threshold


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the places of the `count` largest values, at most all, in descending order; of equal ones the first."""
    places: NDArray[np.int64] = np.arange(len(values))
    if count < len(values):
        places = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return places[np.argsort(-values[places], kind="stable")][:count]
