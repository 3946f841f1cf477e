"""What a client asks about some audio."""

from dataclasses import dataclass

from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.models.registry import Selector
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.explain import ExplainOptions
from speakerlens.serving.pipeline.observer import MonitoringScope

DEFAULT_TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """What to compute for some audio.

    Attributes:
        models: which models, in the order of the answers; empty is the newest of every variant.
        top_k: number of speakers in an answer; 0 is the default.
        explain: which saliency maps, None for none.
        with_embedding: whether the answer holds the embedding.
        priority: of the first window; later windows are bulk.
        deadline: on the clock of `time.monotonic`, None without one.
        monitoring: what robustness monitoring takes of the answer.
        field: name of the request's field with the audio, for error messages.
    """

    models: tuple[Selector, ...] = ()
    top_k: int = 0
    explain: ExplainOptions | None = None
    with_embedding: bool = False
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    monitoring: MonitoringScope = MonitoringScope.ANSWER
    field: str = "audio"


@dataclass(frozen=True, kw_only=True)
class Query(QueryOptions):
    """A query about a whole recording."""

    audio: EncodedAudio | RawAudio
