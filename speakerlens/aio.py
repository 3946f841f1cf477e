"""The client for asyncio: `SpeakerClient` with `await`."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from grpc_health.v1 import health_pb2, health_pb2_grpc

from speakerlens import (
    enrolment_responses,
    model_responses,
    requests,
    responses,
    search_requests,
    search_responses,
    stream_requests,
)
from speakerlens.balancing import DEFAULT_BALANCING, Balancing, Target
from speakerlens.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, Tls, open_async_channel
from speakerlens.enrolment_results import EnrolledSpeaker, GalleryImport, GalleryMigration
from speakerlens.errors import ClientError, translated
from speakerlens.identification import Identification
from speakerlens.model_results import Catalogue
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from speakerlens.requests import AudioSource, Chunk, ExplainChoice
from speakerlens.results import Comparison, Embeddings, WindowResult
from speakerlens.search_requests import SearchStreamOptions
from speakerlens.search_results import SearchResult, SearchWindow
from speakerlens.stream_requests import StreamMessages, StreamOptions

_Result = TypeVar("_Result")


class AsyncSpeakerClient:
    """A connection to one server or several, for one event loop; otherwise as `SpeakerClient`.

    Create it inside the running loop, and close it with `close` or `async with`. Calls may run concurrently:
    `await asyncio.gather(*(client.identify(path) for path in paths))`. Files are read in a thread.
    """

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        tls: bool | Tls = False,
        token: str | None = None,
        balancing: Balancing | None = DEFAULT_BALANCING,
    ) -> None:
        target = Target.parse(address)
        self.address = target.text
        self.timeout = timeout
        self._channel = open_async_channel(target, tls, token, balancing)
        self._stub = SpeakerIdentificationStub(self._channel)
        self._probes = [open_async_channel(each, tls, token, None) for each in target.each()]

    async def identify(
        self,
        audio: AudioSource,
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        top_k: int | None = None,
        explain: ExplainChoice = False,
        with_embedding: bool = False,
        timeout: float | None = None,
    ) -> Identification:
        """Identify the speaker of one utterance; see `SpeakerClient.identify`."""
        request = await asyncio.to_thread(requests.identify, audio, rate, variants, top_k, explain, with_embedding)
        read = partial(responses.identification, source=request.audio)
        return await self._call(self._stub.Identify, request, read, timeout)

    async def identify_batch(
        self,
        audios: Sequence[AudioSource],
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        top_k: int | None = None,
        explain: ExplainChoice = False,
        with_embedding: bool = False,
        timeout: float | None = None,
    ) -> tuple[Identification | ClientError, ...]:
        """Identify the speakers of many utterances in one call; see `SpeakerClient.identify_batch`."""
        request = await asyncio.to_thread(
            requests.identify_batch, audios, rate, variants, top_k, explain, with_embedding
        )

        def read(answer: pb.IdentifyBatchResponse) -> tuple[Identification | ClientError, ...]:
            return responses.batch(answer, len(audios), self.address)

        return await self._call(self._stub.IdentifyBatch, request, read, timeout)

    def identify_stream(
        self, chunks: AsyncIterable[Chunk], options: StreamOptions, *, timeout: float | None = None
    ) -> AsyncIterator[WindowResult | Identification]:
        """Identify the speakers of live audio from an asynchronous iterator; see `SpeakerClient.identify_stream`."""
        outgoing = stream_requests.stream(options)
        return self._stream(self._stub.IdentifyStream, outgoing, chunks, responses.stream_answer, timeout)

    async def search(
        self,
        audio: AudioSource,
        *,
        rate: int | None = None,
        variant: str | None = None,
        speakers: Sequence[str] = (),
        top_k: int | None = None,
        explain: ExplainChoice = False,
        timeout: float | None = None,
    ) -> SearchResult:
        """Find out which enrolled speaker is speaking, or that none of them is; see `SpeakerClient.search`."""
        request = await asyncio.to_thread(search_requests.search, audio, rate, variant, speakers, top_k, explain)
        return await self._call(self._stub.Search, request, search_responses.search_result, timeout)

    async def search_many(
        self,
        audios: Sequence[AudioSource],
        *,
        rate: int | None = None,
        variant: str | None = None,
        speakers: Sequence[str] = (),
        top_k: int | None = None,
        explain: ExplainChoice = False,
        timeout: float | None = None,
    ) -> tuple[SearchResult | ClientError, ...]:
        """Search for the speakers of many utterances in one call; see `SpeakerClient.search_many`."""
        request = await asyncio.to_thread(search_requests.search_batch, audios, rate, variant, speakers, top_k, explain)
        read = partial(search_responses.search_batch, count=len(audios), address=self.address)
        return await self._call(self._stub.SearchBatch, request, read, timeout)

    def search_stream(
        self, chunks: AsyncIterable[Chunk], options: SearchStreamOptions, *, timeout: float | None = None
    ) -> AsyncIterator[SearchWindow | SearchResult]:
        """Search for the speakers of live audio from an asynchronous iterator; see `SpeakerClient.search_stream`."""
        outgoing = search_requests.search_stream(options)
        return self._stream(self._stub.SearchStream, outgoing, chunks, search_responses.search_stream_answer, timeout)

    async def embed(
        self,
        audio: AudioSource,
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        timeout: float | None = None,
    ) -> Embeddings:
        """Return the embeddings of one utterance; see `SpeakerClient.embed`."""
        request = await asyncio.to_thread(requests.embed, audio, rate, variants)
        return await self._call(self._stub.Embed, request, responses.embeddings, timeout)

    async def verify(
        self,
        audio: AudioSource,
        other: AudioSource | None = None,
        *,
        speaker: str | None = None,
        rate: int | None = None,
        variant: str | None = None,
        explain: ExplainChoice = False,
        timeout: float | None = None,
    ) -> Comparison:
        """Compare the speakers of two utterances, or of one and an enrolment; see `SpeakerClient.verify`."""
        request = await asyncio.to_thread(requests.verify, audio, other, speaker, rate, variant, explain)
        return await self._call(self._stub.Verify, request, responses.comparison, timeout)

    async def enroll(
        self,
        speaker: str,
        utterances: Sequence[AudioSource],
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        add: bool = False,
        timeout: float | None = None,
    ) -> EnrolledSpeaker:
        """Enrol a speaker for `verify` and search; see `SpeakerClient.enroll`."""
        request = await asyncio.to_thread(requests.enroll, speaker, utterances, rate, variants, add)
        return await self._call(self._stub.Enroll, request, enrolment_responses.new_enrolment, timeout)

    async def speakers(self, *, timeout: float | None = None) -> tuple[EnrolledSpeaker, ...]:
        """Return the enrolled speakers by name; see `SpeakerClient.speakers`."""
        request, found = pb.ListSpeakersRequest(), list[EnrolledSpeaker]()
        while True:
            page, request.page_token = await self._call(
                self._stub.ListSpeakers, request, enrolment_responses.speakers_page, timeout
            )
            found += page
            if not request.page_token:
                return tuple(found)

    async def forget(self, speaker: str, *, timeout: float | None = None) -> None:
        """Remove an enrolled speaker; raise `NotFoundError` for unknown names."""
        request = pb.RemoveSpeakerRequest(speaker=speaker)
        await self._call(self._stub.RemoveSpeaker, request, lambda answer: None, timeout)

    async def export_gallery(
        self, speakers: Sequence[str] = (), *, timeout: float | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the parts of a file with the enrolled speakers; see `SpeakerClient.export_gallery`."""
        call = self._stub.ExportGallery(pb.ExportGalleryRequest(speakers=speakers), timeout=timeout)
        try:
            with translated(self.address):
                async for part in call:
                    yield part.content
        finally:
            call.cancel()

    async def import_gallery(self, parts: AsyncIterable[bytes], *, timeout: float | None = None) -> GalleryImport:
        """Enrol the speakers of an exported file; see `SpeakerClient.import_gallery`."""
        messages = (pb.GalleryPart(content=part) async for part in parts)
        with translated(self.address):
            return enrolment_responses.gallery_import(await self._stub.ImportGallery(messages, timeout=timeout))

    async def migrate_gallery(
        self, variants: str | Sequence[str] = "all", *, timeout: float | None = None
    ) -> GalleryMigration:
        """Embed kept recordings with other models; see `SpeakerClient.migrate_gallery`."""
        with translated(self.address):
            answer = await self._stub.MigrateGallery(requests.migrate_gallery(variants), timeout=timeout)
            return enrolment_responses.gallery_migration(answer)

    async def models(self, *, timeout: float | None = None) -> Catalogue:
        """Return the loaded models and the limits; see `SpeakerClient.models`."""
        return await self._call(self._stub.ListModels, pb.ListModelsRequest(), model_responses.catalogue, timeout)

    async def is_serving(self, *, timeout: float | None = None) -> bool:
        """Return whether a server reports that it is ready; see `SpeakerClient.is_serving`."""
        request, error, answered = health_pb2.HealthCheckRequest(), None, False
        for probe in self._probes:
            try:
                if await self._call(health_pb2_grpc.HealthStub(probe).Check, request, responses.is_serving, timeout):
                    return True
                answered = True
            except ClientError as failure:
                error = failure
        if error is not None and not answered:
            raise error
        return False

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        for channel in (self._channel, *self._probes):
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _stream(
        self,
        method: Callable[..., Any],
        outgoing: StreamMessages[Any],
        chunks: AsyncIterable[Chunk],
        read: Callable[[Any], _Result],
        timeout: float | None,
    ) -> AsyncIterator[_Result]:
        """Yield the answers of a stream."""
        call = method(outgoing.messages_async(chunks), timeout=timeout)
        try:
            with translated(self.address):
                async for message in call:
                    yield read(message)
        except (ClientError, asyncio.CancelledError):
            if outgoing.error is not None:
                raise outgoing.error from None
            raise
        finally:
            call.cancel()

    async def _call(
        self, method: Callable[..., Awaitable[Any]], request: Any, read: Callable[[Any], _Result], timeout: float | None
    ) -> _Result:
        with translated(self.address):
            return read(await method(request, timeout=self.timeout if timeout is None else timeout))
