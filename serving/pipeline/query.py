"""What a caller asks, and what can be refused before any work is spent on it."""

from dataclasses import dataclass
from enum import Enum

from speakerlens.serving.engine.graphs import PREDICTED
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import InvalidArgumentError, NotFoundError, Reason, listed, quoted
from speakerlens.serving.models.registry import Model, Selector
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.explain import ExplainOptions, Resolution

DEFAULT_TOP_K = 5


class MonitoringScope(Enum):
    """What an answer tells of robustness: how its audio sounds and how sure the models are, the sound alone, nothing.

    SOUND is for answers that name nobody: who is enrolled or verified is mostly no speaker that a model knows.
    """

    ANSWER = "answer"
    SOUND = "sound"
    NOTHING = "nothing"


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """What is to be told of some audio; `deadline` is on the clock of `time.monotonic`, `top_k` 0 is the default."""

    models: tuple[Selector, ...] = ()
    top_k: int = 0
    explain: ExplainOptions | None = None
    with_embedding: bool = False
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    monitoring: MonitoringScope = MonitoringScope.ANSWER


@dataclass(frozen=True, kw_only=True)
class Query(QueryOptions):
    """A question about audio that is there as a whole."""

    audio: EncodedAudio | RawAudio


def target_of(question: QueryOptions, model: Model) -> int:
    """The label that a model is to explain, or PREDICTED.

    Raises:
        InvalidArgumentError: the question makes no sense, or not for this model.
        NotFoundError: the model does not know the speaker to explain.
    """
    speakers = model.bundle.speakers
    if not 0 <= question.top_k <= len(speakers):
        raise InvalidArgumentError(
            Reason.ARGUMENT,
            f"top_k: {question.top_k}; give 1 to {len(speakers)} ({model.bundle.name} knows {len(speakers)} speakers), "
            f"or 0 for {min(DEFAULT_TOP_K, len(speakers))}",
        )
    if question.explain is None:
        return PREDICTED
    if question.explain.resolution is Resolution.NATIVE and "fused" in question.explain.stages:
        raise InvalidArgumentError(
            Reason.ARGUMENT, "explain.stages: the fused map has no native resolution; name stages of S1 to S4"
        )
    if len(set(question.explain.stages)) < len(question.explain.stages):
        raise InvalidArgumentError(Reason.ARGUMENT, "explain.stages: a stage is asked for twice")
    target = question.explain.target_speaker
    if target is None:
        return PREDICTED
    if target not in speakers:
        raise NotFoundError(
            Reason.UNKNOWN_SPEAKER,
            f"explain.target_speaker: {model.bundle.name} knows no speaker {quoted(target)}; "
            f"it knows {listed(speakers)}",
        )
    return speakers.index(target)
