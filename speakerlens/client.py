"""The client for blocking code."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from speakerlens.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, Tls, open_channel
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


class SpeakerClient:
    """A connection to one server, or to several; safe to share between threads. Close it with `close` or `with`.

    Calls that only read are repeated where a server is lost, and spread over the servers where there are several.

    Every call can raise a `ClientError`, with the server's message: `ServerUnavailableError`, `InvalidRequestError`,
    `NotFoundError`, `NotPossibleError`, `UnauthenticatedError`, `OverloadedError`, `DeadlineExceededError` or
    `ServerFailureError`.

    Args:
        address: HOST:PORT, several of them as a sequence or with commas, or `dns:///HOST:PORT` for a name of
            several servers. Nothing is sent before the first call.
        timeout: seconds that a call may take, unless the call has its own `timeout`.
        tls: True, or a `Tls` with certificates; False is plain text.
        token: bearer token, sent with every call; only over TLS, or to a loopback address.
        balancing: how calls are spread and repeated; None: gRPC's defaults, which are the first server that can be
            reached, and no retries.

    Raises:
        OSError: a file of `tls` cannot be read, or no host name of a list is known.
        ValueError: an address, a file or the token is not valid, or the token would be sent in plain text over the
            network.
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
        self._channel = open_channel(target, tls, token, balancing)
        self._stub = SpeakerIdentificationStub(self._channel)
        # Calls on the channel above reach no server that is not ready, and so cannot tell whether one is.
        self._probes = [open_channel(each, tls, token, None) for each in target.each()]

    def identify(
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
        """Identify the speaker of one utterance.

        Args:
            audio: a file's path, its content as bytes, an open file, or samples as an array, tensor or list: floats in
                [-1, 1], or int16, int32 or uint8, [samples], [samples, channels] or [channels, samples]; or a pair
                of samples and rate.
            rate: sample rate in Hz; required for samples alone, not allowed for files.
            variants: `"all"`, or names such as `act-da` (newest version) or `act-da@3`, as a sequence or with commas.
            top_k: speakers per answer, best first: 1 to the number of speakers; None: the server's default (5).
            explain: True for the fused saliency map, a stage or several by name, or an `Explain`.
            with_embedding: return the embeddings as well.
            timeout: seconds for this call; None: the client's.

        Raises:
            ClientError: the call failed (see the class).
            OSError: the file cannot be read.
            ValueError: an argument is not valid; nothing was sent.
        """
        request = requests.identify(audio, rate, variants, top_k, explain, with_embedding)
        read = partial(responses.identification, source=request.audio)
        return self._call(self._stub.Identify, request, read, timeout)

    def identify_batch(
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
        """Identify the speakers of many utterances in one call, by default with the priority `bulk`.

        Args:
            audios: utterances, each as in `identify`.
            rate: sample rate in Hz of all; required for samples, not allowed for files.
            variants: as in `identify`, for all utterances; so are the other options.
            top_k: speakers per answer.
            explain: which saliency maps.
            with_embedding: return the embeddings as well.
            timeout: seconds for the whole call.

        Returns:
            For each utterance, in order, its identification, or the error that `identify` would have raised.

        Raises:
            ClientError: the call as a whole failed.
            OSError: a file cannot be read; nothing was sent.
            ValueError: an argument is not valid; nothing was sent.
        """
        request = requests.identify_batch(audios, rate, variants, top_k, explain, with_embedding)

        def read(answer: pb.IdentifyBatchResponse) -> tuple[Identification | ClientError, ...]:
            return responses.batch(answer, len(audios), self.address)

        return self._call(self._stub.IdentifyBatch, request, read, timeout)

    def identify_stream(
        self, chunks: Iterable[Chunk], options: StreamOptions, *, timeout: float | None = None
    ) -> Iterator[WindowResult | Identification]:
        """Identify the speakers of live audio: one answer for each window as it fills, then one for the whole.

        Args:
            chunks: samples as they arrive, of any size: bytes of 16-bit little-endian PCM, or arrays of floats in
                [-1, 1] or int16, [samples] or [samples, channels]. They are read at the pace of the server.
            options: sample rate and channels, and what to return.
            timeout: seconds for the whole stream; None: no limit.

        Yields:
            A `WindowResult` for each window, and last an `Identification`, as `identify` returns for the whole.

        Raises:
            ClientError: the call failed (see the class).
            ValueError: an argument is not valid. Exceptions of `chunks` are raised unchanged.
        """
        outgoing = stream_requests.stream(options)
        return self._stream(self._stub.IdentifyStream, outgoing, chunks, responses.stream_answer, timeout)

    def search(
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
        """Find out which enrolled speaker is speaking, or that none of them is.

        Args:
            audio: an utterance, as in `identify`.
            rate: sample rate in Hz; required for samples, not allowed for files.
            variant: the model, such as `act-da` or `act-da@3`; None is allowed where the server has only one.
            speakers: names of the enrolled speakers to search; empty: all.
            top_k: candidates to return, best first; None: the server's default (5).
            explain: which saliency maps of the score, and of its difference to the second candidate's.
            timeout: seconds for this call.

        Raises:
            ClientError: the call failed (see the class); `NotPossibleError` where the server stores no speakers,
                `NotFoundError` where one of `speakers` is not enrolled with the model.
            OSError: the file cannot be read.
            ValueError: an argument is not valid; nothing was sent.
        """
        request = search_requests.search(audio, rate, variant, speakers, top_k, explain)
        return self._call(self._stub.Search, request, search_responses.search_result, timeout)

    def search_many(
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
        """Search for the speakers of many utterances in one call, by default with the priority `bulk`.

        Arguments as of `search`, for all utterances; `timeout` is for the whole call.

        Returns:
            For each utterance, in order, its result, or the error that `search` would have raised.

        Raises:
            ClientError: the call as a whole failed.
            OSError: a file cannot be read; nothing was sent.
            ValueError: an argument is not valid; nothing was sent.
        """
        request = search_requests.search_batch(audios, rate, variant, speakers, top_k, explain)
        read = partial(search_responses.search_batch, count=len(audios), address=self.address)
        return self._call(self._stub.SearchBatch, request, read, timeout)

    def search_stream(
        self, chunks: Iterable[Chunk], options: SearchStreamOptions, *, timeout: float | None = None
    ) -> Iterator[SearchWindow | SearchResult]:
        """Search for the speakers of live audio: one answer for each window as it fills, then one for the whole.

        Args and errors as of `identify_stream`.

        Yields:
            A `SearchWindow` for each window, and last a `SearchResult`, as `search` returns for the whole.
        """
        outgoing = search_requests.search_stream(options)
        return self._stream(self._stub.SearchStream, outgoing, chunks, search_responses.search_stream_answer, timeout)

    def embed(
        self,
        audio: AudioSource,
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        timeout: float | None = None,
    ) -> Embeddings:
        """Return the embeddings of one utterance; arguments and errors as of `identify`."""
        request = requests.embed(audio, rate, variants)
        return self._call(self._stub.Embed, request, responses.embeddings, timeout)

    def verify(
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
        """Compare the speakers of two utterances, or the speaker of one with an enrolled speaker.

        Args:
            audio: an utterance, as in `identify`.
            other: a second utterance; pass this or `speaker`.
            speaker: name of an enrolled speaker.
            rate: sample rate in Hz; required for samples, not allowed for files.
            variant: the model; None is allowed where the server has only one.
            explain: which saliency maps of the score.
            timeout: seconds for this call.

        Raises:
            ClientError: the call failed (see the class); `NotPossibleError` where the server stores no speakers, or
                enrolled this one with another model.
            OSError: a file cannot be read.
            ValueError: an argument is not valid; nothing was sent.
        """
        request = requests.verify(audio, other, speaker, rate, variant, explain)
        return self._call(self._stub.Verify, request, responses.comparison, timeout)

    def enroll(
        self,
        speaker: str,
        utterances: Sequence[AudioSource],
        *,
        rate: int | None = None,
        variants: str | Sequence[str] = "all",
        add: bool = False,
        timeout: float | None = None,
    ) -> EnrolledSpeaker:
        """Enrol a speaker for `verify` and search; errors as of `verify`.

        Args:
            speaker: name of the speaker.
            utterances: by default with at least 1 s of speech each, and 5 s in all.
            rate: sample rate in Hz; required for arrays.
            variants: models to enrol with.
            add: add the utterances to those that are stored; else they replace them.
            timeout: seconds.
        """
        request = requests.enroll(speaker, utterances, rate, variants, add)
        return self._call(self._stub.Enroll, request, enrolment_responses.new_enrolment, timeout)

    def speakers(self, *, timeout: float | None = None) -> tuple[EnrolledSpeaker, ...]:
        """Return the enrolled speakers by name; errors as of `verify`. `timeout` is for each page of 1000."""
        request, found = pb.ListSpeakersRequest(), list[EnrolledSpeaker]()
        while True:
            page, request.page_token = self._call(
                self._stub.ListSpeakers, request, enrolment_responses.speakers_page, timeout
            )
            found += page
            if not request.page_token:
                return tuple(found)

    def forget(self, speaker: str, *, timeout: float | None = None) -> None:
        """Remove an enrolled speaker; raise `NotFoundError` for unknown names."""
        request = pb.RemoveSpeakerRequest(speaker=speaker)
        self._call(self._stub.RemoveSpeaker, request, lambda answer: None, timeout)

    def export_gallery(self, speakers: Sequence[str] = (), *, timeout: float | None = None) -> Iterator[bytes]:
        """Yield the parts of a file with the enrolled speakers, all or these; errors as of `verify`."""
        call = self._stub.ExportGallery(pb.ExportGalleryRequest(speakers=speakers), timeout=timeout)
        try:
            with translated(self.address):
                for part in call:
                    yield part.content
        finally:
            call.cancel()

    def import_gallery(self, parts: Iterable[bytes], *, timeout: float | None = None) -> GalleryImport:
        """Enrol the speakers of an exported file, replacing those of the same names; errors as of `verify`."""
        messages = (pb.GalleryPart(content=part) for part in parts)
        with translated(self.address):
            return enrolment_responses.gallery_import(self._stub.ImportGallery(messages, timeout=timeout))

    def migrate_gallery(
        self, variants: str | Sequence[str] = "all", *, timeout: float | None = None
    ) -> GalleryMigration:
        """Embed kept recordings with models that their speakers are not enrolled with; errors as of `verify`."""
        with translated(self.address):
            answer = self._stub.MigrateGallery(requests.migrate_gallery(variants), timeout=timeout)
            return enrolment_responses.gallery_migration(answer)

    def models(self, *, timeout: float | None = None) -> Catalogue:
        """Return the loaded models, the execution provider and the server's limits; raise a `ClientError`."""
        return self._call(self._stub.ListModels, pb.ListModelsRequest(), model_responses.catalogue, timeout)

    def is_serving(self, *, timeout: float | None = None) -> bool:
        """Return whether `grpc.health.v1` reports a server as ready; raise a `ClientError` if none answers."""
        request, error, answered = health_pb2.HealthCheckRequest(), None, False
        for probe in self._probes:
            try:
                if self._call(health_pb2_grpc.HealthStub(probe).Check, request, responses.is_serving, timeout):
                    return True
                answered = True
            except ClientError as failure:
                error = failure
        if error is not None and not answered:
            raise error
        return False

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        for channel in (self._channel, *self._probes):
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(
        self,
        method: Callable[..., Any],
        outgoing: StreamMessages[Any],
        chunks: Iterable[Chunk],
        read: Callable[[Any], _Result],
        timeout: float | None,
    ) -> Iterator[_Result]:
        """Yield the answers of a stream."""
        call = method(outgoing.messages(chunks), timeout=timeout)
        try:
            with translated(self.address):
                for message in call:
                    yield read(message)
        except ClientError:
            if outgoing.error is not None:
                raise outgoing.error from None
            raise
        finally:
            call.cancel()

    def _call(
        self, method: Callable[..., Any], request: Any, read: Callable[[Any], _Result], timeout: float | None
    ) -> _Result:
        with translated(self.address):
            return read(method(request, timeout=self.timeout if timeout is None else timeout))
