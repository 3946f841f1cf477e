"""A stand-in for the server: the service of the wire contract in this process, with known answers."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import (
    SpeakerIdentificationServicer,
    add_SpeakerIdentificationServicer_to_server,
)

SPEAKERS = ("anna", "[bold]$x^$", "carl")
VARIANTS = ("clean", "da", "act-da")
SECONDS = 2.0
ROWS, COLUMNS = 80, 198
AUDIO = pb.AudioInfo(seconds=SECONDS, sample_rate=16000, channels=1)
TIMINGS = pb.Timings(decode_s=0.001, queue_s=0.002, inference_s=0.003, encode_s=0.004)
EMBEDDING = (0.5, -0.25)
THRESHOLD = 0.6


def mel_centres(rows: int) -> NDArray[np.float64]:
    """Return the centres of Kaldi's mel filters from 20 Hz to 8 kHz, in Hz: [rows]."""
    edges = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700), rows + 2)
    return np.asarray(700 * np.expm1(edges[1:-1] / 1127))


def saliency(variant: str) -> NDArray[np.float32]:
    """Return a blob at a different place for each variant, with maximum 1: [rows, columns]."""
    place = VARIANTS.index(variant)
    rows, columns = np.ogrid[:ROWS, :COLUMNS]
    blob = np.exp(-(((rows - 20 * (place + 1)) / 8) ** 2) - ((columns - 60 * (place + 1) + 20) / 12) ** 2)
    return np.asarray(blob / blob.max(), dtype=np.float32)


def log_mel() -> NDArray[np.float32]:
    """Return noise over a slope: [rows, columns]."""
    noise = np.random.default_rng(0).normal(size=(ROWS, COLUMNS))
    return np.asarray(noise - np.linspace(0, 4, ROWS)[:, None], dtype=np.float32)


def plane(values: NDArray[np.float32], stage: pb.Stage.ValueType, encoding: pb.Encoding.ValueType) -> pb.Plane:
    rows, columns = values.shape
    message = pb.Plane(
        stage=stage,
        rows=rows,
        columns=columns,
        encoding=pb.ENCODING_FLOAT32,
        values=values.astype("<f4").tobytes(),
        frequencies_hz=mel_centres(rows),
        times_s=0.0125 + 0.01 * np.arange(columns),
    )
    if encoding == pb.ENCODING_UINT8:
        low, scale = float(values.min()), float(np.ptp(values)) / 255
        message.encoding, message.scale, message.offset = encoding, scale, low
        message.values = np.rint((values - low) / scale).astype(np.uint8).tobytes()
    return message


def _model(variant: str) -> pb.Model:
    stages = [pb.StageInfo(stage=pb.STAGE_S2, tap="layer2", rows=40, stride=2), pb.StageInfo(stage=pb.STAGE_FUSED)]
    return pb.Model(variant=variant, version=3, speakers=SPEAKERS, sample_rate=16000, mel_bins=80, stages=stages)


class StandIn(SpeakerIdentificationServicer):
    """Keep the last request and its metadata; `refuse` fails every call, or only those with `refuse_content`.

    Two utterances have the same speaker if their bytes are equal.
    """

    def __init__(self) -> None:
        self.last: pb.IdentifyRequest | None = None
        self.metadata: dict[str, str | bytes] = {}
        self.batches: list[int] = []
        self.max_requests = 256
        self.pages = 0
        self.enrolled: dict[str, tuple[pb.EnrollRequest, pb.EnrolledSpeaker]] = {}
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.refuse_content: bytes | None = None
        self.reply: pb.IdentifyResponse | None = None

    def Identify(self, request: pb.IdentifyRequest, context: grpc.ServicerContext) -> pb.IdentifyResponse:  # noqa: N802, the contract's name
        self._refused(context, request.audio)
        return self._identified(request)

    def _refused(self, context: grpc.ServicerContext, *audios: pb.Audio) -> None:
        self.metadata = dict(context.invocation_metadata())
        contents = [None, *(audio.encoded for audio in audios)]
        if self.refuse and self.refuse_content in contents:
            context.abort(*self.refuse)

    def _identified(self, request: pb.IdentifyRequest) -> pb.IdentifyResponse:
        self.last = request
        if self.reply:
            return self.reply
        asked = [selector.variant for selector in request.models] or list(VARIANTS)
        return pb.IdentifyResponse(
            answers=[self._answer(variant, request) for variant in asked], audio=AUDIO, timings=TIMINGS
        )

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:  # noqa: N802
        self._refused(context)
        return pb.ListModelsResponse(
            models=[_model(variant) for variant in VARIANTS],
            provider="CPUExecutionProvider",
            limits=pb.Limits(max_bytes=32 * 2**20, min_seconds=0.5, max_seconds=60, max_requests=self.max_requests),
        )

    def IdentifyBatch(  # noqa: N802
        self, request: pb.IdentifyBatchRequest, context: grpc.ServicerContext
    ) -> pb.IdentifyBatchResponse:
        self._refused(context)
        self.batches.append(len(request.requests))
        return pb.IdentifyBatchResponse(results=[self._result(each) for each in request.requests])

    def _result(self, request: pb.IdentifyRequest) -> pb.IdentifyBatchResult:
        if self.refuse and self.refuse_content == request.audio.encoded:
            code, message = self.refuse
            return pb.IdentifyBatchResult(failure=pb.Failure(code=code.name, message=message))
        return pb.IdentifyBatchResult(response=self._identified(request))

    def IdentifyStream(  # noqa: N802
        self, request_iterator: Iterator[pb.IdentifyStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.IdentifyStreamResponse]:
        """Answer for a single window that holds everything."""
        self._refused(context)
        start = next(request_iterator).start
        for _ in request_iterator:
            pass
        whole = self._identified(pb.IdentifyRequest(models=start.models, top_k=start.top_k, explain=start.explain))
        yield pb.IdentifyStreamResponse(
            window=pb.WindowAnswer(end_s=SECONDS, speech=True, answers=whole.answers, timings=TIMINGS)
        )
        yield pb.IdentifyStreamResponse(whole=whole)

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchResponse:  # noqa: N802
        """Answer that the first enrolled speaker is speaking, or the first that is named."""
        self._refused(context, request.audio)
        return self._searched(request.speakers, request.model.variant)

    def SearchBatch(  # noqa: N802
        self, request: pb.SearchBatchRequest, context: grpc.ServicerContext
    ) -> pb.SearchBatchResponse:
        self._refused(context)
        answers = [self._searched(each.speakers, each.model.variant) for each in request.requests]
        return pb.SearchBatchResponse(results=[pb.SearchBatchResult(response=each) for each in answers])

    def SearchStream(  # noqa: N802
        self, request_iterator: Iterator[pb.SearchStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SearchStreamResponse]:
        """Answer for a single window that holds everything."""
        self._refused(context)
        start = next(request_iterator).start
        for _ in request_iterator:
            pass
        whole = self._searched(start.speakers, start.model.variant)
        yield pb.SearchStreamResponse(
            window=pb.SearchWindowAnswer(end_s=SECONDS, speech=True, answer=whole.answer, timings=TIMINGS)
        )
        yield pb.SearchStreamResponse(whole=whole)

    def _searched(self, speakers: Sequence[str], variant: str) -> pb.SearchResponse:
        names = list(speakers) or sorted(self.enrolled)
        answer = pb.SearchAnswer(
            variant=variant or VARIANTS[0],
            version=3,
            decision=pb.DECISION_SPEAKER if names else pb.DECISION_UNKNOWN,
            speaker=names[0] if names else "",
            candidates=[pb.Candidate(speaker=name, cosine=0.9, probability=0.8, exemplars=1) for name in names[:1]],
            gallery=len(names),
            basis=pb.CALIBRATION_BASIS_OUT_OF_SET_SPEAKERS,
        )
        return pb.SearchResponse(answer=answer, audio=AUDIO, timings=TIMINGS)

    def Embed(self, request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:  # noqa: N802
        self._refused(context, request.audio)
        asked = [selector.variant for selector in request.models] or list(VARIANTS)
        embeddings = [pb.Embedding(variant=variant, version=3, values=EMBEDDING) for variant in asked]
        return pb.EmbedResponse(embeddings=embeddings, audio=AUDIO, timings=TIMINGS)

    def Verify(self, request: pb.VerifyRequest, context: grpc.ServicerContext) -> pb.VerifyResponse:  # noqa: N802
        self._refused(context, request.audio, request.other)
        known = [request.other]
        if request.WhichOneof("against") == "enrolled_speaker":
            known = list(self._found(request.enrolled_speaker, context)[0].utterances)
        variant = request.model.variant or VARIANTS[0]
        score = 0.9 if request.audio in known else 0.1
        answer = pb.VerifyResponse(
            variant=variant, version=3, score=score, threshold=THRESHOLD, same=score >= THRESHOLD,
            audio=AUDIO, timings=TIMINGS,
        )  # fmt: skip
        if request.HasField("explain"):
            self._explain(answer.explanation, variant, request.explain, request.enrolled_speaker)
        if request.HasField("other"):
            answer.other.CopyFrom(AUDIO)
            if request.HasField("explain"):
                self._explain(answer.other_explanation, variant, request.explain, "")
        return answer

    def Enroll(self, request: pb.EnrollRequest, context: grpc.ServicerContext) -> pb.EnrollResponse:  # noqa: N802
        self._refused(context, *request.utterances)
        count, asked = len(request.utterances), [selector.variant for selector in request.models] or list(VARIANTS)
        models = [
            pb.EnrolledModel(variant=each, version=3, utterances=count, enrolled="2026-01-01T00:00:00Z", usable=True)
            for each in asked
        ]
        speaker = pb.EnrolledSpeaker(speaker=request.speaker, models=models)
        self.enrolled[request.speaker] = (request, speaker)
        return pb.EnrollResponse(speaker=speaker)

    def ListSpeakers(self, request: pb.ListSpeakersRequest, context: grpc.ServicerContext) -> pb.ListSpeakersResponse:  # noqa: N802
        self._refused(context)
        self.pages += 1
        rest = [name for name in self.enrolled if not request.page_token or name > request.page_token]
        page = sorted(rest)[:2]
        return pb.ListSpeakersResponse(
            speakers=[self.enrolled[name][1] for name in page], next_page_token=page[-1] if len(rest) > 2 else ""
        )

    def RemoveSpeaker(  # noqa: N802
        self, request: pb.RemoveSpeakerRequest, context: grpc.ServicerContext
    ) -> pb.RemoveSpeakerResponse:
        self._refused(context)
        self._found(request.speaker, context)
        del self.enrolled[request.speaker]
        return pb.RemoveSpeakerResponse()

    def ExportGallery(  # noqa: N802
        self, request: pb.ExportGalleryRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GalleryPart]:
        self._refused(context)
        for name in request.speakers or sorted(self.enrolled):
            yield pb.GalleryPart(content=f"{name}\n".encode())

    def ImportGallery(  # noqa: N802
        self, request_iterator: Iterator[pb.GalleryPart], context: grpc.ServicerContext
    ) -> pb.ImportGalleryResponse:
        self._refused(context)
        lines = b"".join(part.content for part in request_iterator).splitlines()
        return pb.ImportGalleryResponse(speakers=len(lines), exemplars=2 * len(lines))

    def MigrateGallery(  # noqa: N802
        self, request: pb.MigrateGalleryRequest, context: grpc.ServicerContext
    ) -> pb.MigrateGalleryResponse:
        self._refused(context)
        return pb.MigrateGalleryResponse(migrated=len(request.models), must_enroll_again=sorted(self.enrolled))

    def _found(self, speaker: str, context: grpc.ServicerContext) -> tuple[pb.EnrollRequest, pb.EnrolledSpeaker]:
        if speaker not in self.enrolled:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no enrolled speaker {speaker!r}")
        return self.enrolled[speaker]

    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:  # noqa: N802
        self._refused(context)
        if request.model.variant not in VARIANTS:
            context.abort(grpc.StatusCode.NOT_FOUND, f"variant {request.model.variant!r} is not loaded")
        return pb.GetModelResponse(model=_model(request.model.variant))

    @staticmethod
    def _answer(variant: str, request: pb.IdentifyRequest) -> pb.ModelAnswer:
        probabilities = (0.9, 0.07, 0.03) if variant != "clean" else (0.4, 0.35, 0.25)
        answer = pb.ModelAnswer(
            variant=variant,
            version=3,
            known=variant != "clean",
            speakers=[
                pb.SpeakerScore(speaker=speaker, probability=probability, logit=30 * probability)
                for speaker, probability in zip(SPEAKERS, probabilities, strict=True)
            ][: request.top_k or 5],
            embedding=EMBEDDING if request.with_embedding else [],
        )
        if request.HasField("explain"):
            target = request.explain.target_speaker or SPEAKERS[0]
            StandIn._explain(answer.explanation, variant, request.explain, target)
        return answer

    @staticmethod
    def _explain(explanation: pb.Explanation, variant: str, asked: pb.ExplainOptions, target: str) -> None:
        explanation.target_speaker = target
        for stage in asked.stages or [pb.STAGE_FUSED]:
            explanation.saliency.append(plane(saliency(variant), stage, asked.encoding))
        explanation.log_mel.CopyFrom(plane(log_mel(), pb.STAGE_UNSPECIFIED, asked.encoding))


@contextmanager
def serving(stand_in: StandIn, *, healthy: bool = True) -> Iterator[str]:
    """Serve the stand-in on a free port and yield its address."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 4 * 2**20)])
    add_SpeakerIdentificationServicer_to_server(stand_in, server)
    state = health.HealthServicer()
    status = health_pb2.HealthCheckResponse
    state.set("", status.SERVING if healthy else status.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
