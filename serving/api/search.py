"""The calls of `speakerlens.v1.SpeakerIdentification` that search the enrolled speakers."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.api.base import BaseService, deadline_of, note_variants
from speakerlens.serving.api.messages import audio_of, stream_of
from speakerlens.serving.api.search_messages import (
    search_batch_response_of,
    search_options_of,
    search_response_of,
    search_start_of,
    search_stream_response_of,
)
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.search import Searcher
from speakerlens.serving.pipeline.stream import LiveWindows


class SearchService(BaseService):
    """The calls of search."""

    async def Search(self, request: pb.SearchRequest, context: Any) -> pb.SearchResponse:  # noqa: N802
        """Search for the speaker of one utterance."""
        self._speakers.check()
        with self._one(request) as model:
            return await self._searched(request, deadline_of(context), Priority.INTERACTIVE, model)

    async def SearchBatch(self, request: pb.SearchBatchRequest, context: Any) -> pb.SearchBatchResponse:  # noqa: N802
        """Search for the speakers of many utterances, all with the models that are loaded when the call begins."""
        self._speakers.check()
        deadline = deadline_of(context)

        @contextmanager
        def lease(each: pb.SearchRequest) -> Iterator[Sequence[Model]]:
            with self._leased(each.model if each.HasField("model") else None) as model:
                yield [model]

        async def answer(each: pb.SearchRequest, models: Sequence[Model]) -> pb.SearchResponse:
            return await self._searched(each, deadline, Priority.BULK, models[0])

        results = await self._batches.run(request.requests, lease, answer)
        return await self._built(search_batch_response_of, results)

    async def SearchStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.SearchStreamRequest], context: Any
    ) -> AsyncIterator[pb.SearchStreamResponse]:
        """Search for the speakers of a stream, window by window."""
        self._speakers.check()
        pipeline, idle_budget = self._loaded_pipeline(), self._idle_budget()
        start, chunks = await stream_of(idle_budget.messages(request_iterator))
        options, form = search_start_of(start, deadline_of(context))
        with self._leased(start.model if start.HasField("model") else None) as model:
            note_variants([model])
            live = LiveWindows(
                form, pipeline.duration_limit(options.query), pipeline.windowing([model]), pipeline.min_samples(model)
            )
            credit = idle_budget.credit(chunks, form.bytes_per_second)
            async with aclosing(self._searcher().stream(options, live, model, credit)) as answers:
                async for answer in answers:
                    response = await pipeline.run_in_thread(partial(search_stream_response_of, answer))
                    if self._journal is not None:
                        self._journal.searched_in_stream(response)
                    with idle_budget.waiting():
                        yield response

    async def _searched(
        self, request: pb.SearchRequest, deadline: float | None, unspecified: Priority, model: Model
    ) -> pb.SearchResponse:
        options = search_options_of(request, deadline, unspecified)
        result = await self._searcher().search(options, audio_of(request.audio), model)
        response = await self._built(search_response_of, result)
        if self._journal is not None:
            self._journal.searched(response.answer)
        return response

    def _searcher(self) -> Searcher:
        return Searcher(self._loaded_pipeline(), self._galleries, self._metrics)
