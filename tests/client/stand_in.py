"""A stand-in for the server: the wire contract's own service in this process, with answers that a test can know."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from protos.speakerlens.v1 import identification_pb2 as pb
from protos.speakerlens.v1.identification_pb2_grpc import (
    SpeakerIdentificationServicer,
    add_SpeakerIdentificationServicer_to_server,
)

SPEAKERS = ("anna", "[bold]$x^$", "carl")
VARIANTS = ("clean", "da", "act-da")
SECONDS = 2.0
ROWS, COLUMNS = 80, 198


def mel_centres(rows: int) -> NDArray[np.float64]:
    """Centres of Kaldi's mel filters from 20 Hz to 8 kHz."""
    edges = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700), rows + 2)
    return np.asarray(700 * np.expm1(edges[1:-1] / 1127))


def saliency(variant: str) -> NDArray[np.float32]:
    """A blob for each variant at another place, its maximum 1: [rows, columns]."""
    place = VARIANTS.index(variant)
    rows, columns = np.ogrid[:ROWS, :COLUMNS]
    blob = np.exp(-(((rows - 20 * (place + 1)) / 8) ** 2) - ((columns - 60 * (place + 1) + 20) / 12) ** 2)
    return np.asarray(blob / blob.max(), dtype=np.float32)


def log_mel() -> NDArray[np.float32]:
    """Noise over a slope: [rows, columns]."""
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


class StandIn(SpeakerIdentificationServicer):
    """Remembers the last request; `refuse` makes it fail every call, or only one whose content is `refuse_content`."""

    def __init__(self) -> None:
        self.last: pb.IdentifyRequest | None = None
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.refuse_content: bytes | None = None
        self.reply: pb.IdentifyResponse | None = None

    def Identify(self, request: pb.IdentifyRequest, context: grpc.ServicerContext) -> pb.IdentifyResponse:  # noqa: N802, the contract's name
        self.last = request
        if self.refuse and self.refuse_content in (None, request.audio.encoded):
            context.abort(*self.refuse)
        if self.reply:
            return self.reply
        asked = [selector.variant for selector in request.models] or list(VARIANTS)
        return pb.IdentifyResponse(
            answers=[self._answer(variant, request) for variant in asked],
            audio=pb.AudioInfo(seconds=SECONDS, sample_rate=16000, channels=1),
            timings=pb.Timings(decode_s=0.001, queue_s=0.002, inference_s=0.003, encode_s=0.004),
        )

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:  # noqa: N802
        if self.refuse:
            context.abort(*self.refuse)
        stages = [pb.StageInfo(stage=pb.STAGE_S2, tap="layer2", rows=40, stride=2), pb.StageInfo(stage=pb.STAGE_FUSED)]
        return pb.ListModelsResponse(
            models=[
                pb.Model(variant=variant, version=3, speakers=SPEAKERS, sample_rate=16000, mel_bins=80, stages=stages)
                for variant in VARIANTS
            ],
            provider="CPUExecutionProvider",
            limits=pb.Limits(max_bytes=32 * 2**20, min_seconds=0.5, max_seconds=60),
        )

    def IdentifyBatch(  # noqa: N802
        self, request: pb.IdentifyBatchRequest, context: grpc.ServicerContext
    ) -> pb.IdentifyBatchResponse:
        raise NotImplementedError

    def IdentifyStream(  # noqa: N802
        self, request_iterator: Iterator[pb.IdentifyStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.IdentifyStreamResponse]:
        raise NotImplementedError

    def Embed(self, request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:  # noqa: N802
        raise NotImplementedError

    def Verify(self, request: pb.VerifyRequest, context: grpc.ServicerContext) -> pb.VerifyResponse:  # noqa: N802
        raise NotImplementedError

    def Enroll(self, request: pb.EnrollRequest, context: grpc.ServicerContext) -> pb.EnrollResponse:  # noqa: N802
        raise NotImplementedError

    def ListSpeakers(self, request: pb.ListSpeakersRequest, context: grpc.ServicerContext) -> pb.ListSpeakersResponse:  # noqa: N802
        raise NotImplementedError

    def RemoveSpeaker(  # noqa: N802
        self, request: pb.RemoveSpeakerRequest, context: grpc.ServicerContext
    ) -> pb.RemoveSpeakerResponse:
        raise NotImplementedError

    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:  # noqa: N802
        raise NotImplementedError

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
            embedding=[0.5, -0.25] if request.with_embedding else [],
        )
        if request.HasField("explain"):
            encoding = request.explain.encoding
            answer.explanation.target_speaker = request.explain.target_speaker or SPEAKERS[0]
            for stage in request.explain.stages or [pb.STAGE_FUSED]:
                answer.explanation.saliency.append(plane(saliency(variant), stage, encoding))
            answer.explanation.log_mel.CopyFrom(plane(log_mel(), pb.STAGE_UNSPECIFIED, encoding))
        return answer


@contextmanager
def serving(stand_in: StandIn, *, healthy: bool = True) -> Iterator[str]:
    """Serves the stand-in on a free port and yields its address."""
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
