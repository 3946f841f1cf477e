"""The client for asyncio code: `SpeakerClient` with `await`."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from grpc_health.v1 import health_pb2, health_pb2_grpc

from speakerlens import channel, response, voices
from speakerlens.credentials import Tls, async_channel
from speakerlens.errors import ClientError, translated
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from speakerlens.request import AudioSource, Explain, batch_request, identify_request
from speakerlens.results import Catalogue, Identification, WindowResult
from speakerlens.stream import Chunk, Outgoing, StreamOptions, answer_of


class AsyncSpeakerClient:
    """A connection to one server for one event loop; arguments, results and errors are those of `SpeakerClient`.

    Make it inside the running loop, and close it with `close` or `async with`. Calls may run side by side:
    `await asyncio.gather(*(client.identify(path) for path in paths))`.
    """

    def __init__(
        self,
        address: str = channel.DEFAULT_ADDRESS,
        *,
        timeout: float = channel.DEFAULT_TIMEOUT_S,
        tls: bool | Tls = False,
        token: str | None = None,
    ) -> None:
        self.address = address
        self.timeout = timeout
        self._channel = async_channel(address, tls, token)
        self._stub = SpeakerIdentificationStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def identify(
        self,
        audio: AudioSource,
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        top_k: int | None = None,
        explain: bool | Explain = False,
        with_embedding: bool = False,
        timeout: float | None = None,
    ) -> Identification:
        """Name the speaker of one utterance; see `SpeakerClient.identify`."""
        # A file is read, and samples are copied, away from the loop.
        request = await asyncio.to_thread(
            identify_request,
            audio,
            rate,
            variants=variants,
            top_k=top_k,
            explain=explain,
            with_embedding=with_embedding,
        )
        with translated(self.address):
            return response.identification(await self._stub.Identify(request, timeout=self._deadline(timeout)))

    async def identify_batch(
        self,
        audios: Sequence[AudioSource],
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        top_k: int | None = None,
        explain: bool | Explain = False,
        with_embedding: bool = False,
        timeout: float | None = None,
    ) -> tuple[Identification | ClientError, ...]:
        """Name the speakers of many utterances in one call; see `SpeakerClient.identify_batch`."""
        request = await asyncio.to_thread(
            batch_request,
            audios,
            rate,
            variants=variants,
            top_k=top_k,
            explain=explain,
            with_embedding=with_embedding,
        )
        with translated(self.address):
            answer = await self._stub.IdentifyBatch(request, timeout=self._deadline(timeout))
        return response.batch(answer, len(audios), self.address)

    async def identify_stream(
        self, chunks: AsyncIterable[Chunk], options: StreamOptions, *, timeout: float | None = None
    ) -> AsyncIterator[WindowResult | Identification]:
        """Name the speakers of live audio, of chunks that are awaited; see `SpeakerClient.identify_stream`."""
        outgoing = Outgoing(options)
        call = self._stub.IdentifyStream(outgoing.messages_async(chunks), timeout=timeout)
        try:
            with translated(self.address):
                async for message in call:
                    yield answer_of(message)
        except (ClientError, asyncio.CancelledError):
            if outgoing.error is not None:
                raise outgoing.error from None
            raise
        finally:
            call.cancel()

    async def embed(
        self,
        audio: AudioSource,
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        timeout: float | None = None,
    ) -> voices.Embeddings:
        """Return the embeddings of one utterance; arguments and errors as of `identify`."""
        request = await asyncio.to_thread(voices.embed_request, audio, rate, variants)
        with translated(self.address):
            return voices.embeddings(await self._stub.Embed(request, timeout=self._deadline(timeout)))

    async def verify(
        self,
        audio: AudioSource,
        other: AudioSource | None = None,
        *,
        speaker: str | None = None,
        rate: int | None = None,
        variant: str | None = None,
        explain: bool | Explain = False,
        timeout: float | None = None,
    ) -> voices.Comparison:
        """Tell whether one voice is heard in two utterances, or an enrolled speaker's in one.

        Args as of `identify`; `variant` may be left out where the server has one only. Errors as well, and
        `NotPossibleError` where the server keeps no speakers or knows this one from another model.
        """
        request = await asyncio.to_thread(voices.verify_request, audio, other, speaker, rate, variant, explain)
        with translated(self.address):
            return voices.comparison(await self._stub.Verify(request, timeout=self._deadline(timeout)))

    async def enroll(
        self,
        speaker: str,
        utterances: Sequence[AudioSource],
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        timeout: float | None = None,
    ) -> voices.EnrolledSpeaker:
        """Store a speaker for `verify`, in the place of one of that name; errors as of `verify`."""
        request = await asyncio.to_thread(voices.enroll_request, speaker, utterances, rate, variants)
        with translated(self.address):
            answer = await self._stub.Enroll(request, timeout=self._deadline(timeout))
        return voices.enrolled(answer.speaker)

    async def speakers(self, *, timeout: float | None = None) -> tuple[voices.EnrolledSpeaker, ...]:
        """List the enrolled speakers; errors as of `verify`."""
        request, found = pb.ListSpeakersRequest(), list[voices.EnrolledSpeaker]()
        while True:
            with translated(self.address):
                answer = await self._stub.ListSpeakers(request, timeout=self._deadline(timeout))
            found += map(voices.enrolled, answer.speakers)
            if not answer.next_page_token:
                return tuple(found)
            request.page_token = answer.next_page_token

    async def forget(self, speaker: str, *, timeout: float | None = None) -> None:
        """Remove an enrolled speaker; `NotFoundError` where nobody of that name is."""
        with translated(self.address):
            await self._stub.RemoveSpeaker(pb.RemoveSpeakerRequest(speaker=speaker), timeout=self._deadline(timeout))

    async def models(self, *, timeout: float | None = None) -> Catalogue:
        """List the loaded models; see `SpeakerClient.models`."""
        with translated(self.address):
            answer = await self._stub.ListModels(pb.ListModelsRequest(), timeout=self._deadline(timeout))
        return response.catalogue(answer)

    async def is_serving(self, *, timeout: float | None = None) -> bool:
        """Tell whether the server says that it is ready; see `SpeakerClient.is_serving`."""
        with translated(self.address):
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=self._deadline(timeout))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """End the connection; calls in flight are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _deadline(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else timeout
