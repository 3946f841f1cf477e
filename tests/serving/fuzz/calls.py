"""The methods of both services, each with good requests that wild ones are made from."""

from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as triton

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.gallery.file import written
from tests.serving.api.requests import SERVICE as INFERENCE
from tests.serving.api.requests import message, padded
from tests.serving.fuzz.files import whole
from tests.serving.harness import raw, voice

TYPED = f"/{pb.DESCRIPTOR.services_by_name['SpeakerIdentification'].full_name}/"
AUDIO = raw(voice(0.6))


class Method(NamedTuple):
    """A method's path and good requests to it; where it is streamed, they are one stream in this order."""

    path: str
    requests: tuple[Any, ...]
    streamed: bool = False


def _typed_contents(request: triton.ModelInferRequest) -> triton.ModelInferRequest:
    """The same with its audio in `fp32_contents`."""
    audio, lengths = request.raw_input_contents
    request.inputs[0].contents.fp32_contents.extend(np.frombuffer(audio, "<f4").tolist())
    request.inputs[1].contents.int64_contents.extend(np.frombuffer(lengths, "<i8").tolist())
    del request.raw_input_contents[:]
    return request


def _methods() -> list[Method]:
    explain = pb.ExplainOptions(stages=[pb.STAGE_FUSED, pb.STAGE_S2], encoding=pb.ENCODING_UINT8)
    models = [pb.ModelSelector(variant="da"), pb.ModelSelector(variant="clean", version=1)]
    rows = [voice(0.7, seed=1), voice(0.52, seed=2)]
    named: dict[str, Message] = {
        name: getattr(triton, f"{name}Request")(name="da", version="1")
        for name in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
    }
    return [
        Method(
            f"{TYPED}Identify",
            (
                pb.IdentifyRequest(audio=AUDIO, models=models, top_k=3, explain=explain, with_embedding=True),
                *(pb.IdentifyRequest(audio=pb.Audio(encoded=data)) for data in whole()[:1]),
            ),
        ),
        Method(
            f"{TYPED}IdentifyBatch",
            (
                pb.IdentifyBatchRequest(
                    requests=[pb.IdentifyRequest(audio=AUDIO, models=models[:1], explain=explain)] * 3
                ),
            ),
        ),
        Method(f"{TYPED}Embed", (pb.EmbedRequest(audio=AUDIO, models=models),)),
        # In this order: the others need the speaker that the first one stores.
        Method(f"{TYPED}Enroll", (pb.EnrollRequest(speaker="ada", utterances=[AUDIO] * 2, models=models),)),
        Method(
            f"{TYPED}Verify",
            (
                pb.VerifyRequest(audio=AUDIO, other=raw(voice(0.8, seed=3)), model=models[0], explain=explain),
                pb.VerifyRequest(audio=AUDIO, enrolled_speaker="ada", model=models[0]),
            ),
        ),
        Method(
            f"{TYPED}Search",
            (
                pb.SearchRequest(audio=AUDIO, model=models[0], speakers=["ada"], top_k=3, explain=explain),
                pb.SearchRequest(audio=AUDIO, model=models[0], with_outlook=True),
            ),
        ),
        Method(
            f"{TYPED}SearchBatch",
            (pb.SearchBatchRequest(requests=[pb.SearchRequest(audio=AUDIO, model=models[0])] * 2),),
        ),
        Method(
            f"{TYPED}SearchStream",
            (
                pb.SearchStreamRequest(
                    start=pb.SearchStreamStart(
                        format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=16_000, model=models[0], explain=explain
                    )
                ),
                *(pb.SearchStreamRequest(samples=voice(0.4, seed=seed).tobytes()) for seed in range(5)),
            ),
            streamed=True,
        ),
        Method(f"{TYPED}ListSpeakers", (pb.ListSpeakersRequest(),)),
        # A single part, which a call that expects one answer takes.
        Method(f"{TYPED}ExportGallery", (pb.ExportGalleryRequest(speakers=["ada"]),)),
        Method(
            f"{TYPED}ImportGallery",
            tuple(pb.GalleryPart(content=part) for part in _halves(b"".join(written([], "2026-01-01")))),
            streamed=True,
        ),
        Method(f"{TYPED}MigrateGallery", (pb.MigrateGalleryRequest(models=models),)),
        Method(f"{TYPED}RemoveSpeaker", (pb.RemoveSpeakerRequest(speaker="ada"),)),
        Method(
            f"{TYPED}IdentifyStream",
            (
                pb.IdentifyStreamRequest(
                    start=pb.StreamStart(
                        format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=16_000, models=models, explain=explain
                    )
                ),
                *(pb.IdentifyStreamRequest(samples=voice(0.4, seed=seed).tobytes()) for seed in range(5)),
            ),
            streamed=True,
        ),
        Method(f"{TYPED}GetModel", (pb.GetModelRequest(model=models[1]),)),
        Method(f"{TYPED}ListModels", (pb.ListModelsRequest(),)),
        Method(
            f"{INFERENCE}ModelInfer",
            (
                message(padded(rows), "probabilities", "saliency"),
                message({**padded(rows), "target": np.array([[1], [-1]])}, "saliency_s3", model="clean", version="1"),
                _typed_contents(message(padded(rows))),
            ),
        ),
        *(Method(f"{INFERENCE}{name}", (request,)) for name, request in named.items()),
        Method(f"{INFERENCE}ServerLive", (triton.ServerLiveRequest(),)),
        Method(f"{INFERENCE}ServerReady", (triton.ServerReadyRequest(),)),
        Method(f"{INFERENCE}ServerMetadata", (triton.ServerMetadataRequest(),)),
        Method(f"{INFERENCE}RepositoryIndex", (triton.RepositoryIndexRequest(ready=True),)),
    ]


def _halves(content: bytes) -> tuple[bytes, bytes]:
    return content[: len(content) // 2], content[len(content) // 2 :]


METHODS = _methods()
