"""Reads the messages that a server answers with; knows nothing of channels."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from speakerlens import picture
from speakerlens.errors import ClientError, ServerFailureError, of_failure
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.request import STAGES
from speakerlens.results import (
    Answer,
    AudioInfo,
    Catalogue,
    Explanation,
    Identification,
    Limits,
    ModelFailure,
    ModelInfo,
    Plane,
    Segment,
    SpeakerScore,
    StageInfo,
    Timings,
    WindowResult,
)

_STAGE_NAMES = {number: name for name, number in STAGES.items()}


def identification(response: pb.IdentifyResponse) -> Identification:
    """Read the answer to one utterance.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    return Identification(
        answers=_answers(response.answers),
        audio=audio_info(response.audio),
        timings=timings(response.timings),
        failures=failures(response.answers),
    )


def batch(response: pb.IdentifyBatchResponse, asked: int, address: str) -> tuple[Identification | ClientError, ...]:
    """Read the answers to so many utterances; errors that belong to one stand in its place.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    if len(response.results) != asked:
        raise ServerFailureError(f"the server at {address} sent {len(response.results)} results for {asked} utterances")
    return tuple(_result(each, address) for each in response.results)


def _result(result: pb.IdentifyBatchResult, address: str) -> Identification | ClientError:
    kind = result.WhichOneof("result")
    if kind == "response":
        return identification(result.response)
    if kind == "failure":
        return of_failure(result.failure.code, result.failure.message, address)
    raise ServerFailureError(f"the server at {address} sent a result of a kind that this client does not know")


def window(answer: pb.WindowAnswer) -> WindowResult:
    """Read the answer to one window of a stream.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    return WindowResult(
        start_s=answer.start_s,
        end_s=answer.end_s,
        speech=answer.speech,
        answers=_answers(answer.answers),
        failures=failures(answer.answers),
        timings=timings(answer.timings),
    )


def catalogue(response: pb.ListModelsResponse) -> Catalogue:
    """Read the list of loaded models."""
    limits = response.limits
    return Catalogue(
        models=tuple(_model(model) for model in response.models),
        provider=response.provider,
        limits=Limits(limits.max_bytes, limits.min_seconds, limits.max_seconds, limits.max_requests),
    )


def audio_info(audio: pb.AudioInfo) -> AudioInfo:
    """Read what the server received."""
    return AudioInfo(audio.seconds, audio.sample_rate, audio.channels)


def timings(timings: pb.Timings) -> Timings:
    """Read where the server spent its time."""
    return Timings(timings.decode_s, timings.queue_s, timings.inference_s, timings.encode_s)


def _answers(answers: Iterable[pb.ModelAnswer]) -> tuple[Answer, ...]:
    return tuple(_answer(answer) for answer in answers if not answer.HasField("failure"))


def failures(answers: Iterable[pb.ModelAnswer] | Iterable[pb.Embedding]) -> tuple[ModelFailure, ...]:
    """Read the failures among the answers of models."""
    return tuple(
        ModelFailure(answer.variant, answer.version, answer.failure.code, answer.failure.message)
        for answer in answers
        if answer.HasField("failure")
    )


def _answer(answer: pb.ModelAnswer) -> Answer:
    if not answer.speakers:
        raise ServerFailureError(f"the server's answer of {answer.variant}@{answer.version} names no speaker")
    return Answer(
        variant=answer.variant,
        version=answer.version,
        speakers=tuple(SpeakerScore(score.speaker, score.probability, score.logit) for score in answer.speakers),
        known=answer.known,
        explanation=explanation(answer.explanation) if answer.HasField("explanation") else None,
        embedding=np.array(answer.embedding, dtype=np.float32) if answer.embedding else None,
        timeline=tuple(
            Segment(each.start_s, each.end_s, each.speaker, each.probability, each.known) for each in answer.timeline
        ),
    )


def explanation(explanation: pb.Explanation) -> Explanation:
    """Read maps; a `ServerFailureError` where they contradict themselves."""
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
        picture=plane.values if plane.encoding == pb.ENCODING_PNG else None,
    )


def _values(plane: pb.Plane) -> NDArray[np.float32]:
    """Read the numbers, however they are written."""
    scale, offset = np.float32(plane.scale), np.float32(plane.offset)
    if plane.encoding == pb.ENCODING_UINT8:
        return np.frombuffer(plane.values, dtype=np.uint8).astype(np.float32) * scale + offset
    if plane.encoding == pb.ENCODING_PNG:
        try:
            levels = picture.levels(plane.values, plane.rows, plane.columns)
        except ValueError as error:
            raise ServerFailureError(f"the server sent {error}") from error
        return levels.astype(np.float32) * scale + offset
    kind, size = ("float16", 2) if plane.encoding == pb.ENCODING_FLOAT16 else ("float32", 4)
    if len(plane.values) % size:
        raise ServerFailureError(f"the server sent {len(plane.values)} bytes as {kind} values of {size} bytes")
    values = np.frombuffer(plane.values, dtype=f"<f{size}").astype(np.float32)
    return values * scale if size == 2 else values


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
