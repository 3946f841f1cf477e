"""The calls of `speakerlens.v1.SpeakerIdentification` about the enrolled speakers."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.api.base import BaseService, deadline_of, note_variants
from speakerlens.serving.api.messages import selectors_of
from speakerlens.serving.api.voice_messages import (
    enroll_response_of,
    page_of,
    replaces_of,
    speakers_response_of,
    utterances_of,
)
from speakerlens.serving.pipeline.enroll import Enroller
from speakerlens.serving.pipeline.exchange import Exchange


class GalleryService(BaseService):
    """The calls that enrol, list, remove and move speakers."""

    async def Enroll(self, request: pb.EnrollRequest, context: Any) -> pb.EnrollResponse:  # noqa: N802
        """Enrol a speaker."""
        pipeline, utterances, replaces = self._loaded_pipeline(), utterances_of(request), replaces_of(request)
        with pipeline.models.lease(selectors_of(request.models)) as models:
            note_variants(models)
            enrolled = await self._enroller().enroll(
                request.speaker, utterances, models, deadline_of(context), replaces
            )
        self._galleries.expire()
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
        self._galleries.expire()
        return pb.RemoveSpeakerResponse()

    async def ExportGallery(  # noqa: N802
        self, request: pb.ExportGalleryRequest, context: Any
    ) -> AsyncIterator[pb.GalleryPart]:
        """Stream a file with the enrolled speakers."""
        async with aclosing(self._exchange().export(request.speakers)) as parts:
            async for part in parts:
                yield pb.GalleryPart(content=part)

    async def ImportGallery(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.GalleryPart], context: Any
    ) -> pb.ImportGalleryResponse:
        """Enrol the speakers of a file."""
        budget = self._idle_budget()
        contents = (part.content async for part in budget.messages(request_iterator))
        speakers, exemplars = await self._exchange().load(contents, self._config.max_held_bytes // 4)
        self._galleries.expire()
        return pb.ImportGalleryResponse(speakers=speakers, exemplars=exemplars)

    async def MigrateGallery(  # noqa: N802
        self, request: pb.MigrateGalleryRequest, context: Any
    ) -> pb.MigrateGalleryResponse:
        """Embed kept recordings with the loaded models."""
        pipeline = self._loaded_pipeline()
        with pipeline.models.lease(selectors_of(request.models)) as models:
            note_variants(models)
            result = await self._exchange().migrate(models, deadline_of(context))
        self._galleries.expire()
        return pb.MigrateGalleryResponse(migrated=len(result.migrated), must_enroll_again=result.must_enroll_again)

    def _enroller(self) -> Enroller:
        return Enroller(self._loaded_pipeline(), self._speakers, self._config)

    def _exchange(self) -> Exchange:
        return Exchange(self._loaded_pipeline(), self._speakers)
