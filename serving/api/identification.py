"""`speakerlens.v1.SpeakerIdentification`: translate between its messages and the pipeline."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.api.base import deadline_of, note_variants
from speakerlens.serving.api.batches import MAX_REQUESTS
from speakerlens.serving.api.gallery import GalleryService
from speakerlens.serving.api.messages import (
    batch_response_of,
    query_of,
    response_of,
    selectors_of,
    start_of,
    stream_of,
    stream_response_of,
)
from speakerlens.serving.api.model_messages import model_of
from speakerlens.serving.api.search import SearchService
from speakerlens.serving.api.voice_messages import (
    embed_query_of,
    embed_response_of,
    verification_request_of,
    verify_response_of,
)
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.listen import identify_with_sound
from speakerlens.serving.pipeline.query import Query
from speakerlens.serving.pipeline.stream import LiveWindows, identify_stream
from speakerlens.serving.pipeline.verify import Verifier

# The message of an answer about shorter audio is built on the event loop: a short timeline, or a few small maps.
INLINE_SECONDS: Final = 60.0
INLINE_EXPLAINED_SECONDS: Final = 10.0
SERVICE: Final = pb.DESCRIPTOR.services_by_name["SpeakerIdentification"].full_name


class Service(SearchService, GalleryService):
    """The servicer; `serving.rpc.interceptor` turns its errors into statuses."""

    async def Identify(self, request: pb.IdentifyRequest, context: Any) -> pb.IdentifyResponse:  # noqa: N802
        """Identify the speaker of one utterance."""
        pipeline, query = self._loaded_pipeline(), query_of(request, deadline_of(context))
        with pipeline.models.lease(query.models, naming=True) as models:
            note_variants(models)
            return await self._identified(pipeline, query, models)

    async def IdentifyBatch(  # noqa: N802
        self, request: pb.IdentifyBatchRequest, context: Any
    ) -> pb.IdentifyBatchResponse:
        """Identify the speakers of many utterances, all with the models that are loaded when the call begins."""
        pipeline, deadline = self._loaded_pipeline(), deadline_of(context)

        async def answer(each: pb.IdentifyRequest, models: Sequence[Model]) -> pb.IdentifyResponse:
            return await self._identified(pipeline, query_of(each, deadline, Priority.BULK), models)

        results = await self._batches.run(
            request.requests, lambda each: pipeline.models.lease(selectors_of(each.models), naming=True), answer
        )
        return await self._built(batch_response_of, results)

    async def _identified(self, pipeline: Pipeline, query: Query, models: Sequence[Model]) -> pb.IdentifyResponse:
        if query.explain is not None and query.explain.listen:
            result = await identify_with_sound(pipeline, query, models)
        else:
            result = await pipeline.identify(query, models)
        if result.audio.seconds <= (INLINE_SECONDS if query.explain is None else INLINE_EXPLAINED_SECONDS):
            response = response_of(result)
        else:
            response = await self._built(response_of, result)
        if self._journal is not None:
            self._journal.identified(response.answers)
        return response

    async def IdentifyStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.IdentifyStreamRequest], context: Any
    ) -> AsyncIterator[pb.IdentifyStreamResponse]:
        """Identify the speakers of a stream, window by window."""
        pipeline, idle_budget = self._loaded_pipeline(), self._idle_budget()
        start, chunks = await stream_of(idle_budget.messages(request_iterator))
        query, form = start_of(start, deadline_of(context))
        with pipeline.models.lease(query.models, naming=True) as models:
            note_variants(models)
            least = max(pipeline.min_samples(model) for model in models)
            live = LiveWindows(form, pipeline.duration_limit(query), pipeline.windowing(models), least)
            credit = idle_budget.credit(chunks, form.bytes_per_second)
            async with aclosing(identify_stream(pipeline, query, live, models, credit)) as answers:
                async for answer in answers:
                    response = await pipeline.run_in_thread(partial(stream_response_of, answer))
                    if self._journal is not None:
                        self._journal.identified_in_stream(response)
                    with idle_budget.waiting():
                        yield response

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Embed one utterance."""
        pipeline = self._loaded_pipeline()
        query = embed_query_of(request, deadline_of(context))
        with pipeline.models.lease(query.models) as models:
            note_variants(models)
            return embed_response_of(await pipeline.identify(query, models))

    async def Verify(self, request: pb.VerifyRequest, context: Any) -> pb.VerifyResponse:  # noqa: N802
        """Compare two voices."""
        pipeline = self._loaded_pipeline()
        verification = verification_request_of(request, deadline_of(context))
        with self._one(request) as model:
            result = await Verifier(pipeline, self._speakers).verify(verification, model)
        response = await self._built(verify_response_of, result)
        if self._journal is not None:
            self._journal.verified(response, request.enrolled_speaker or None)
        return response

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
