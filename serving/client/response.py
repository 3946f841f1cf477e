"""Reads the messages that a server answers with; knows nothing of channels."""

import numpy as np
from numpy.typing import NDArray

from protos.speakerlens.v1 import identification_pb2 as pb
from serving.client.errors import ServerFailureError
from serving.client.request import STAGES
from serving.client.results import (
    Answer,
    AudioInfo,
    Catalogue,
    Explanation,
    Identification,
    Limits,
    ModelInfo,
    Plane,
    SpeakerScore,
    StageInfo,
    Timings,
)

_STAGE_NAMES = {number: name for name, number in STAGES.items()}


def identification(response: pb.IdentifyResponse) -> Identification:
    """Read the answer to one utterance.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    timings = response.timings
    return Identification(
        answers=tuple(_answer(answer) for answer in response.answers),
        audio=AudioInfo(response.audio.seconds, response.audio.sample_rate, response.audio.channels),
        timings=Timings(timings.decode_s, timings.queue_s, timings.inference_s, timings.encode_s),
    )


def catalogue(response: pb.ListModelsResponse) -> Catalogue:
    """Read the list of loaded models."""
    limits = response.limits
    return Catalogue(
        models=tuple(_model(model) for model in response.models),
        provider=response.provider,
        limits=Limits(limits.max_bytes, limits.min_seconds, limits.max_seconds),
    )


def _answer(answer: pb.ModelAnswer) -> Answer:
    if not answer.speakers:
        raise ServerFailureError(f"the server's answer of {answer.variant}@{answer.version} names no speaker")
    return Answer(
        variant=answer.variant,
        version=answer.version,
        speakers=tuple(SpeakerScore(score.speaker, score.probability, score.logit) for score in answer.speakers),
        known=answer.known,
        explanation=_explanation(answer.explanation) if answer.HasField("explanation") else None,
        embedding=np.array(answer.embedding, dtype=np.float32) if answer.embedding else None,
    )


def _explanation(explanation: pb.Explanation) -> Explanation:
    return Explanation(
        target_speaker=explanation.target_speaker,
        maps={_stage(plane.stage): _plane(plane, _stage(plane.stage)) for plane in explanation.saliency},
        log_mel=_plane(explanation.log_mel, "log-mel") if explanation.HasField("log_mel") else None,
    )


def _plane(plane: pb.Plane, name: str) -> Plane:
    axes_fit = len(plane.frequencies_hz) == plane.rows and len(plane.times_s) == plane.columns
    values = _values(plane)
    if not axes_fit or values.size != plane.rows * plane.columns:
        raise ServerFailureError(
            f"the server's {name} plane is said to be {plane.rows} x {plane.columns}, but holds {values.size} values, "
            f"{len(plane.frequencies_hz)} frequencies and {len(plane.times_s)} times"
        )
    return Plane(
        values=values.reshape(plane.rows, plane.columns),
        frequencies_hz=np.array(plane.frequencies_hz, dtype=np.float32),
        times_s=np.array(plane.times_s, dtype=np.float32),
    )


def _values(plane: pb.Plane) -> NDArray[np.float32]:
    if plane.encoding == pb.ENCODING_UINT8:
        steps = np.frombuffer(plane.values, dtype=np.uint8).astype(np.float32)
        return steps * np.float32(plane.scale) + np.float32(plane.offset)
    if len(plane.values) % 4:
        raise ServerFailureError(f"the server sent {len(plane.values)} bytes as float32 values of 4 bytes")
    return np.frombuffer(plane.values, dtype="<f4").astype(np.float32)


def _model(model: pb.Model) -> ModelInfo:
    return ModelInfo(
        variant=model.variant,
        version=model.version,
        speakers=tuple(model.speakers),
        sample_rate=model.sample_rate,
        mel_bins=model.mel_bins,
        embedding_size=model.embedding_size,
        stages=tuple(StageInfo(_stage(stage.stage), stage.tap, stage.rows, stage.stride) for stage in model.stages),
        code_revision=model.code_revision,
        training_data_digest=model.training_data_digest,
    )


def _stage(number: pb.Stage.ValueType) -> str:
    try:
        return _STAGE_NAMES[number]
    except KeyError:
        raise ServerFailureError(f"the server named a stage that this client does not know (number {number})") from None
