"""The client for ordinary, blocking code."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from grpc_health.v1 import health_pb2, health_pb2_grpc

from speakerlens import channel, response, voices
from speakerlens.credentials import Tls, sync_channel
from speakerlens.errors import ClientError, translated
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from speakerlens.request import AudioSource, Explain, batch_request, identify_request
from speakerlens.results import Catalogue, Identification, WindowResult
from speakerlens.stream import Chunk, Outgoing, StreamOptions, answer_of


class SpeakerClient:
    """A connection to one server; safe to share between threads, closed by `close` or the end of a `with` block.

    Every call raises a `ClientError`, with the server's sentence: `ServerUnavailableError`, `InvalidRequestError`,
    `NotFoundError`, `UnauthenticatedError`, `OverloadedError`, `DeadlineExceededError` or `ServerFailureError`.

    Args:
        address: HOST:PORT. Nothing is sent before the first call.
        timeout: seconds that a call may take, unless the call itself says otherwise.
        tls: True, or a `Tls` that says whom to trust and what to show; False is plain text.
        token: bearer token, sent with every call; only by TLS, or to this machine.

    Raises:
        OSError: a file of `tls` cannot be read.
        ValueError: a file makes no sense, or the token would travel in the clear.
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
        self._channel = sync_channel(address, tls, token)
        self._stub = SpeakerIdentificationStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def identify(
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
        """Name the speaker of one utterance.

        Args:
            audio: a file's path, a file's content as bytes, or samples: floats in [-1, 1] or int16, [samples] or
                [samples, channels].
            rate: Hz; for samples only, where it is required.
            variants: `"all"`, or names such as `act-da` (newest version) or `act-da@3`, as a sequence or with commas.
            top_k: speakers per answer, best first: 1 to the number of speakers; None: the server's choice, 5 as a rule.
            explain: True for the fused map, or an `Explain` that says which maps.
            with_embedding: return the embeddings as well.
            timeout: seconds for this call.

        Raises:
            ClientError: the call failed (see the class).
            OSError: the file cannot be read.
            ValueError: an argument makes no request.
        """
        request = identify_request(
            audio, rate, variants=variants, top_k=top_k, explain=explain, with_embedding=with_embedding
        )
        with translated(self.address):
            return response.identification(self._stub.Identify(request, timeout=self._deadline(timeout)))

    def identify_batch(
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
        """Name the speakers of many utterances in one call, which waits behind calls for one.

        Args:
            audios: utterances, each as in `identify`.
            rate: Hz, of all; for samples only, where it is required.
            variants: as in `identify`, and the same for all, as what follows.
            top_k: speakers per answer.
            explain: which maps.
            with_embedding: return the embeddings as well.
            timeout: seconds for the whole call.

        Returns:
            For each utterance, in their order, its identification, or the error that `identify` would have raised.

        Raises:
            ClientError: the call as a whole failed.
            OSError: a file cannot be read; nothing was sent.
            ValueError: an argument makes no request.
        """
        request = batch_request(
            audios, rate, variants=variants, top_k=top_k, explain=explain, with_embedding=with_embedding
        )
        with translated(self.address):
            answer = self._stub.IdentifyBatch(request, timeout=self._deadline(timeout))
        return response.batch(answer, len(audios), self.address)

    def identify_stream(
        self, chunks: Iterable[Chunk], options: StreamOptions, *, timeout: float | None = None
    ) -> Iterator[WindowResult | Identification]:
        """Name the speakers of live audio: an answer for each window as it is filled, and at last that for the whole.

        Args:
            chunks: samples as they come, of any size: bytes of 16-bit little-endian PCM, or arrays of floats in [-1, 1]
                or int16, [samples] or [samples, channels]. They are taken as the server has room for them.
            options: the audio's rate and channels, and what to ask.
            timeout: seconds for the whole stream; None is no limit.

        Yields:
            A `WindowResult` for each window, and an `Identification`, which is what `identify` gives for the whole.

        Raises:
            ClientError: the call failed (see the class).
            ValueError: an argument makes no request. What `chunks` raises comes out as it is.
        """
        outgoing = Outgoing(options)
        call = self._stub.IdentifyStream(outgoing.messages(chunks), timeout=timeout)
        try:
            with translated(self.address):
                for message in call:
                    yield answer_of(message)
        except ClientError:
            if outgoing.error is not None:
                raise outgoing.error from None
            raise
        finally:
            call.cancel()

    def embed(
        self,
        audio: AudioSource,
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        timeout: float | None = None,
    ) -> voices.Embeddings:
        """Return the embeddings of one utterance; arguments and errors as of `identify`."""
        request = voices.embed_request(audio, rate, variants)
        with translated(self.address):
            return voices.embeddings(self._stub.Embed(request, timeout=self._deadline(timeout)))

    def verify(
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
        request = voices.verify_request(audio, other, speaker, rate, variant, explain)
        with translated(self.address):
            return voices.comparison(self._stub.Verify(request, timeout=self._deadline(timeout)))

    def enroll(
        self,
        speaker: str,
        utterances: Sequence[AudioSource],
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        timeout: float | None = None,
    ) -> voices.EnrolledSpeaker:
        """Store a speaker for `verify`, in the place of one of that name; errors as of `verify`."""
        request = voices.enroll_request(speaker, utterances, rate, variants)
        with translated(self.address):
            answer = self._stub.Enroll(request, timeout=self._deadline(timeout))
        return voices.enrolled(answer.speaker)

    def speakers(self, *, timeout: float | None = None) -> tuple[voices.EnrolledSpeaker, ...]:
        """List the enrolled speakers; errors as of `verify`."""
        request, found = pb.ListSpeakersRequest(), list[voices.EnrolledSpeaker]()
        while True:
            with translated(self.address):
                answer = self._stub.ListSpeakers(request, timeout=self._deadline(timeout))
            found += map(voices.enrolled, answer.speakers)
            if not answer.next_page_token:
                return tuple(found)
            request.page_token = answer.next_page_token

    def forget(self, speaker: str, *, timeout: float | None = None) -> None:
        """Remove an enrolled speaker; `NotFoundError` where nobody of that name is."""
        with translated(self.address):
            self._stub.RemoveSpeaker(pb.RemoveSpeakerRequest(speaker=speaker), timeout=self._deadline(timeout))

    def models(self, *, timeout: float | None = None) -> Catalogue:
        """List the loaded models, the engine's provider and the server's limits; raise a `ClientError`."""
        with translated(self.address):
            return response.catalogue(self._stub.ListModels(pb.ListModelsRequest(), timeout=self._deadline(timeout)))

    def is_serving(self, *, timeout: float | None = None) -> bool:
        """Ask `grpc.health.v1` whether the server is ready; raise a `ClientError` if it does not say."""
        with translated(self.address):
            answer = self._health.Check(health_pb2.HealthCheckRequest(), timeout=self._deadline(timeout))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """End the connection; calls in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else timeout
