"""What a model says, as a caller wants it: speakers with probabilities, maps, a timeline; or how the model failed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.engine.graphs import ExplainedPrediction
from speakerlens.serving.errors import RequestError
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import softmax
from speakerlens.serving.pipeline.decode import AudioInfo
from speakerlens.serving.pipeline.explain import Explanation, explain
from speakerlens.serving.pipeline.query import DEFAULT_TOP_K, QueryOptions
from speakerlens.serving.pipeline.session import ModelOutput
from speakerlens.serving.pipeline.timing import Timings


@dataclass(frozen=True)
class SpeakerScore:
    """One speaker's calibrated probability and pre-softmax score."""

    speaker: str
    probability: float
    logit: float


@dataclass(frozen=True)
class Segment:
    """Seconds from the beginning in which windows agree, and what they say in the mean."""

    start_s: float
    end_s: float
    speaker: str
    probability: float
    known: bool


@dataclass(frozen=True)
class Answer:
    """What one model says; speakers are best first. The timeline is empty for audio of one window."""

    variant: str
    version: int
    speakers: tuple[SpeakerScore, ...]
    known: bool
    explanation: Explanation | None
    embedding: NDArray[np.float32] | None
    timeline: tuple[Segment, ...] = ()


@dataclass(frozen=True)
class Failed:
    """How one model failed while another answered."""

    variant: str
    version: int
    error: Exception

    @property
    def code(self) -> str:
        """The name of a gRPC status."""
        return self.error.code if isinstance(self.error, RequestError) else "INTERNAL"

    @property
    def message(self) -> str:
        """A sentence for the caller."""
        if isinstance(self.error, RequestError):
            return str(self.error)
        return f"{self.variant}/{self.version} failed; the server's log says how"


@dataclass(frozen=True)
class Identification:
    """Answers in the order asked, and the audio as received."""

    answers: tuple[Answer | Failed, ...]
    audio: AudioInfo
    timings: Timings


@dataclass(frozen=True)
class WindowAnswer:
    """Answers for a stretch of live audio, in seconds from its beginning; none where nobody speaks."""

    start_s: float
    end_s: float
    speech: bool
    answers: tuple[Answer | Failed, ...]
    timings: Timings


def answer_of(question: QueryOptions, model: Model, said: ModelOutput | Exception, start: int = 0) -> Answer | Failed:
    """What a model said, beginning `start` samples into the audio; takes time where maps are wanted."""
    bundle = model.bundle
    if isinstance(said, Exception):
        return Failed(bundle.variant, bundle.version, said)
    prediction = said.prediction
    probabilities = softmax(prediction.logits / bundle.temperature)
    best = np.argsort(-prediction.logits, kind="stable")[: question.top_k or DEFAULT_TOP_K]
    explanation = None
    if question.explain is not None and isinstance(prediction, ExplainedPrediction):
        explanation = explain(bundle, prediction, question.explain, start)
    return Answer(
        variant=bundle.variant,
        version=bundle.version,
        speakers=tuple(
            SpeakerScore(bundle.speakers[label], float(probabilities[label]), float(prediction.logits[label]))
            for label in best
        ),
        known=known(model, float(prediction.logits.max())),
        explanation=explanation,
        embedding=prediction.embedding if question.with_embedding else None,
        timeline=tuple(
            Segment(
                stretch.start_s,
                stretch.end_s,
                bundle.speakers[stretch.label],
                stretch.probability,
                known(model, stretch.logit),
            )
            for stretch in said.timeline
        ),
    )


def known(model: Model, logit: float) -> bool:
    """Whether a best score is high enough to be somebody's whom the model knows."""
    return logit / model.bundle.score_scale >= model.bundle.threshold  # in float64, as it was chosen


def embedding_of(answer: Answer | Failed) -> NDArray[np.float32]:
    """The embedding, [size], of an answer to a question that asked for it.

    Raises:
        Exception: how the model failed.
    """
    if isinstance(answer, Failed):
        raise answer.error
    assert answer.embedding is not None
    return answer.embedding
