"""`speakerlens.v1.SpeakerIdentification`: translate between its messages and the pipeline."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager
from functools import partial
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationServicer
from speakerlens.serving.api.messages import (
    batch_response_of,
    failure_of,
    model_of,
    query_of,
    response_of,
    selectors_of,
    start_of,
    stream_of,
    stream_response_of,
)
from speakerlens.serving.api.voice_messages import (
    embed_query_of,
    embed_response_of,
    enroll_response_of,
    one_selector,
    page_of,
    replaces_of,
    speakers_response_of,
    utterances_of,
    verification_request_of,
    verify_response_of,
)
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.config import Config
from speakerlens.serving.context import current_context, variant_label
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import InvalidArgumentError, Reason, RequestError, ResourceExhaustedError
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.concurrency import map_concurrent, retry_when_full
from speakerlens.serving.pipeline.enroll import Enroller
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.query import Query
from speakerlens.serving.pipeline.stream import IdleBudget, LiveWindows, identify_stream
from speakerlens.serving.pipeline.verify import Verifier

T = TypeVar("T")
MessageT = TypeVar("MessageT", bound=Message)

SERVICE: Final = pb.DESCRIPTOR.services_by_name["SpeakerIdentification"].full_name
# Most utterances in one IdentifyBatch.
MAX_REQUESTS: Final = 256
# Largest answer of one IdentifyBatch, so that a few batches leave room to other calls.
MAX_ANSWER_BYTES: Final = 2**26


class Service(SpeakerIdentificationServicer):
    """The servicer; `serving.rpc.interceptor` turns its errors into statuses.

    Args:
        config: the limits that ListModels reports.
        metrics: counts requests of a batch that are refused.
        codec: threads that build large messages.
        speakers: the enrolled speakers.

    Attributes:
        pipeline: answers queries; set once models are loaded, before calls are let in.
    """

    def __init__(
        self, config: Config, metrics: Metrics, codec: ThreadPoolExecutor, speakers: AsyncSpeakerStore
    ) -> None:
        self.pipeline: Pipeline | None = None
        self._config = config
        self._metrics = metrics
        self._codec = codec
        self._streams_end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._speakers = speakers
        # All IdentifyBatch calls together fill at most half of a queue, and two batches of the device.
        self._batch_slots = asyncio.Semaphore(max(1, min(2 * config.max_batch, config.queue_size // 2)))

    async def Identify(self, request: pb.IdentifyRequest, context: Any) -> pb.IdentifyResponse:  # noqa: N802
        """Identify the speaker of one utterance."""
        pipeline, query = self._loaded_pipeline(), query_of(request, deadline_of(context))
        with pipeline.models.lease(query.models) as models:
            _note_variants(models)
            return await self._identified(pipeline, query, models)

    async def IdentifyBatch(  # noqa: N802
        self, request: pb.IdentifyBatchRequest, context: Any
    ) -> pb.IdentifyBatchResponse:
        """Identify the speakers of many utterances, all with the models that are loaded when the call begins."""
        pipeline = self._loaded_pipeline()
        if not 1 <= len(request.requests) <= MAX_REQUESTS:
            raise InvalidArgumentError(
                Reason.ARGUMENT,
                f"requests: {len(request.requests)}; send 1 to {MAX_REQUESTS}, and more in further calls",
            )
        deadline, size = deadline_of(context), 0

        async def identified(item: tuple[pb.IdentifyRequest, tuple[Model, ...] | RequestError]) -> pb.IdentifyResponse:
            nonlocal size
            each, models = item
            if isinstance(models, RequestError):
                raise models
            query = query_of(each, deadline, Priority.BULK)
            response = await retry_when_full(lambda: self._identified(pipeline, query, models))
            added = response.ByteSize()
            if size + added > MAX_ANSWER_BYTES:
                raise ResourceExhaustedError(
                    Reason.ANSWER_SIZE, f"the answer would be above {MAX_ANSWER_BYTES} bytes; ask for fewer in one call"
                )
            current_context.get().reserve_answer(added)
            size += added
            return response

        async def result_of(
            item: tuple[pb.IdentifyRequest, tuple[Model, ...] | RequestError],
        ) -> pb.IdentifyResponse | pb.Failure:
            try:
                return await identified(item)
            except Exception as error:  # noqa: BLE001 - becomes this request's failure
                if isinstance(error, RequestError):
                    self._metrics.rejections.labels(error.reason).inc()
                return failure_of(error)

        with ExitStack() as leases:
            leased = [_leased(pipeline, each, leases) for each in request.requests]
            found = [model for models in leased if not isinstance(models, RequestError) for model in models]
            _note_variants(found)
            items = list(zip(request.requests, leased, strict=True))
            results = await map_concurrent(items, result_of, self._config.max_batch, self._batch_slots)
        return await self._built(batch_response_of, results)

    async def _identified(self, pipeline: Pipeline, query: Query, models: Sequence[Model]) -> pb.IdentifyResponse:
        return await self._built(response_of, await pipeline.identify(query, models))

    async def IdentifyStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.IdentifyStreamRequest], context: Any
    ) -> AsyncIterator[pb.IdentifyStreamResponse]:
        """Identify the speakers of a stream, window by window."""
        pipeline, idle_budget = self._loaded_pipeline(), IdleBudget(self._config.stream_idle_seconds, self._streams_end)
        start, chunks = await stream_of(idle_budget.messages(request_iterator))
        query, form = start_of(start, deadline_of(context))
        with pipeline.models.lease(query.models) as models:
            _note_variants(models)
            least = max(pipeline.min_samples(model) for model in models)
            live = LiveWindows(form, pipeline.duration_limit(query), pipeline.windowing(models), least)
            credit = idle_budget.credit(chunks, form.bytes_per_second)
            async with aclosing(identify_stream(pipeline, query, live, models, credit)) as answers:
                async for answer in answers:
                    response = await pipeline.run_in_thread(partial(stream_response_of, answer))
                    with idle_budget.waiting():
                        yield response

    def end_streams(self) -> None:
        """End the streams whose clients continue to send."""
        if not self._streams_end.done():
            self._streams_end.set_result(None)

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Embed one utterance."""
        pipeline = self._loaded_pipeline()
        query = embed_query_of(request, deadline_of(context))
        with pipeline.models.lease(query.models) as models:
            _note_variants(models)
            return embed_response_of(await pipeline.identify(query, models))

    async def Verify(self, request: pb.VerifyRequest, context: Any) -> pb.VerifyResponse:  # noqa: N802
        """Compare two voices."""
        pipeline = self._loaded_pipeline()
        verification = verification_request_of(request, deadline_of(context))
        with self._one(request) as model:
            result = await Verifier(pipeline, self._speakers).verify(verification, model)
        return await self._built(verify_response_of, result)

    async def Enroll(self, request: pb.EnrollRequest, context: Any) -> pb.EnrollResponse:  # noqa: N802
        """Enrol a speaker."""
        pipeline = self._loaded_pipeline()
        utterances = utterances_of(request)
        replaces = replaces_of(request)
        with pipeline.models.lease(selectors_of(request.models)) as models:
            _note_variants(models)
            enrolled = await self._enroller().enroll(
                request.speaker, utterances, models, deadline_of(context), replaces
            )
        return enroll_response_of(enrolled)

    async def ListSpeakers(self, request: pb.ListSpeakersRequest, context: Any) -> pb.ListSpeakersResponse:  # noqa: N802
        """Return a page of the enrolled speakers."""
        page = await self._enroller().page(*page_of(request))
        return await self._built(speakers_response_of, page)

    async def RemoveSpeaker(  # noqa: N802
        self, request: pb.RemoveSpeakerRequest, context: Any
    ) -> pb.RemoveSpeakerResponse:
        """Remove an enrolled speaker."""
        await self._enroller().remove(request.speaker)
        return pb.RemoveSpeakerResponse()

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        """Describe one loaded model."""
        with self._one(request) as model:
            return pb.GetModelResponse(model=model_of(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """Describe the loaded models, and the server's limits."""
        pipeline = self._loaded_pipeline()
        shortest = max(pipeline.min_samples(model) for model in pipeline.models)
        return pb.ListModelsResponse(
            models=[model_of(model) for model in pipeline.models],
            provider=pipeline.models.provider,
            limits=pb.Limits(
                max_bytes=self._config.max_message_bytes,
                min_seconds=shortest / SAMPLE_RATE,
                max_seconds=self._config.max_seconds,
                max_requests=MAX_REQUESTS,
            ),
        )

    @contextmanager
    def _one(self, request: pb.VerifyRequest | pb.GetModelRequest) -> Iterator[Model]:
        """Lease the one model of a request; error messages name its field `model`."""
        models = self._loaded_pipeline().models
        selector = one_selector(models, request.model if request.HasField("model") else None)
        [model] = models.select([selector], "model")
        with models.hold([model]):
            _note_variants([model])
            yield model

    async def _built(self, build: Callable[[T], MessageT], result: T) -> MessageT:
        """Build a message that may be large in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._codec, build, result)

    def _enroller(self) -> Enroller:
        return Enroller(self._loaded_pipeline(), self._speakers, self._config)

    def _loaded_pipeline(self) -> Pipeline:
        assert self.pipeline is not None, "the gate opens after the models are loaded"
        return self.pipeline


def _note_variants(models: Iterable[Model]) -> None:
    """Label the call in work with the variants of these models."""
    current_context.get().variant = variant_label(model.bundle.variant for model in models)


def _leased(pipeline: Pipeline, request: pb.IdentifyRequest, leases: ExitStack) -> tuple[Model, ...] | RequestError:
    """Return the models of one request of a batch, leased until `leases` end, or the error."""
    try:
        return leases.enter_context(pipeline.models.lease(selectors_of(request.models)))
    except RequestError as error:
        return error


def deadline_of(context: Any) -> float | None:
    """Return the call's deadline on the clock of `time.monotonic`, None without one."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
