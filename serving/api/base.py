"""What all calls of `speakerlens.v1.SpeakerIdentification` use."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from google.protobuf.message import Message

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationServicer
from speakerlens.serving.api.batches import BatchRunner
from speakerlens.serving.api.voice_messages import one_selector
from speakerlens.serving.config import Config
from speakerlens.serving.context import current_context, variant_label
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.loaded import Galleries
from speakerlens.serving.journal import Journal
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.stream import IdleBudget

T = TypeVar("T")
MessageT = TypeVar("MessageT", bound=Message)


class BaseService(SpeakerIdentificationServicer):
    """Base of the servicers.

    Args:
        config: the limits that ListModels reports.
        metrics: counts requests of a batch that are refused.
        codec: threads that build large messages.
        speakers: the enrolled speakers.
        journal: receives every decision; None for none.

    Attributes:
        pipeline: answers queries; set once models are loaded, before calls are let in.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        codec: ThreadPoolExecutor,
        speakers: AsyncSpeakerStore,
        journal: Journal | None = None,
    ) -> None:
        self.pipeline: Pipeline | None = None
        self._config = config
        self._metrics = metrics
        self._codec = codec
        self._streams_end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._speakers = speakers
        self._journal = journal
        self._galleries = Galleries(speakers, self._digests)
        self._batches = BatchRunner(metrics, config)

    def end_streams(self) -> None:
        """End the streams whose clients continue to send."""
        if not self._streams_end.done():
            self._streams_end.set_result(None)

    def _idle_budget(self) -> IdleBudget:
        return IdleBudget(self._config.stream_idle_seconds, self._streams_end)

    def _digests(self) -> list[str]:
        return [model.bundle.digest for model in self._loaded_pipeline().models]

    @contextmanager
    def _one(self, request: pb.VerifyRequest | pb.GetModelRequest | pb.SearchRequest) -> Iterator[Model]:
        """Lease the one model of a request; error messages name its field `model`."""
        with self._leased(request.model if request.HasField("model") else None) as model:
            note_variants([model])
            yield model

    @contextmanager
    def _leased(self, selector: pb.ModelSelector | None) -> Iterator[Model]:
        """Lease one model; the selector may be None where one variant is loaded."""
        models = self._loaded_pipeline().models
        [model] = models.select([one_selector(models, selector)], "model")
        with models.hold([model]):
            yield model

    async def _built(self, build: Callable[[T], MessageT], result: T) -> MessageT:
        """Build a message that may be large in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._codec, build, result)

    def _loaded_pipeline(self) -> Pipeline:
        assert self.pipeline is not None, "the gate opens after the models are loaded"
        return self.pipeline


def note_variants(models: Iterable[Model]) -> None:
    """Label the call in work with the variants of these models."""
    current_context.get().variant = variant_label(model.bundle.variant for model in models)


def deadline_of(context: Any) -> float | None:
    """Return the call's deadline on the clock of `time.monotonic`, None without one."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
