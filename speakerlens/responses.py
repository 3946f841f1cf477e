"""Read the messages that a server answers with; independent of gRPC channels."""

import struct
import zlib
from collections.abc import Iterable

import numpy as np
from grpc_health.v1 import health_pb2
from numpy.typing import NDArray

from speakerlens.errors import ClientError, ServerFailureError, of_failure
from speakerlens.identification import Identification
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.requests import STAGES
from speakerlens.results import (
    Answer,
    AudioInfo,
    Comparison,
    Embeddings,
    Evidence,
    Explanation,
    Listening,
    Mismatch,
    ModelFailure,
    Plane,
    Segment,
    SpeakerScore,
    ThresholdBasis,
    Timings,
    WindowResult,
)

_BASES = {
    pb.THRESHOLD_BASIS_OUT_OF_SET_SPEAKERS: ThresholdBasis.OUT_OF_SET,
    pb.THRESHOLD_BASIS_KNOWN_SPEAKERS: ThresholdBasis.KNOWN,
    pb.THRESHOLD_BASIS_NONE: ThresholdBasis.NONE,
}
_STAGE_NAMES = {number: name for name, number in STAGES.items()}


def identification(response: pb.IdentifyResponse, source: pb.Audio | None = None) -> Identification:
    """Read the answer to one utterance, which holds `source` as what was sent.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    return Identification(
        answers=_answers(response.answers),
        audio=audio_info(response.audio),
        timings=timings(response.timings),
        failures=_failures(response.answers),
        source=source,
    )


def batch(response: pb.IdentifyBatchResponse, count: int, address: str) -> tuple[Identification | ClientError, ...]:
    """Read the answers to `count` utterances; the error of one stands in its place.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    if len(response.results) != count:
        raise ServerFailureError(f"the server at {address} sent {len(response.results)} results for {count} utterances")
    return tuple(_result(each, address) for each in response.results)


def _result(result: pb.IdentifyBatchResult, address: str) -> Identification | ClientError:
    kind = result.WhichOneof("result")
    if kind == "response":
        return identification(result.response)
    if kind == "failure":
        return of_failure(result.failure.code, result.failure.message, address)
    raise ServerFailureError(f"the server at {address} sent a result of a kind that this client does not know")


def stream_answer(message: pb.IdentifyStreamResponse) -> WindowResult | Identification:
    """Read one answer of a stream: of a window, or of the whole.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    kind = message.WhichOneof("answer")
    if kind == "whole":
        return identification(message.whole)
    if kind == "window":
        return _window(message.window)
    raise ServerFailureError("the server sent an answer of a kind that this client does not know")


def _window(answer: pb.WindowAnswer) -> WindowResult:
    return WindowResult(
        start_s=answer.start_s,
        end_s=answer.end_s,
        speech=answer.speech,
        answers=_answers(answer.answers),
        failures=_failures(answer.answers),
        timings=timings(answer.timings),
    )


def embeddings(answer: pb.EmbedResponse) -> Embeddings:
    """Read the embeddings of one utterance."""
    return Embeddings(
        by_model={
            f"{each.variant}@{each.version}": np.array(each.values, dtype=np.float32)
            for each in answer.embeddings
            if not each.HasField("failure")
        },
        audio=audio_info(answer.audio),
        timings=timings(answer.timings),
        failures=_failures(answer.embeddings),
    )


def comparison(answer: pb.VerifyResponse) -> Comparison:
    """Read a comparison.

    Raises:
        ServerFailureError: a map contradicts itself or the contract.
    """
    return Comparison(
        variant=answer.variant,
        version=answer.version,
        score=answer.score,
        threshold=answer.threshold,
        same=answer.same,
        explanation=explanation(answer.explanation) if answer.HasField("explanation") else None,
        other_explanation=explanation(answer.other_explanation) if answer.HasField("other_explanation") else None,
        audio=audio_info(answer.audio),
        other=audio_info(answer.other) if answer.HasField("other") else None,
        timings=timings(answer.timings),
        threshold_basis=basis_of(answer.threshold_basis),
        mismatch=mismatch_of(answer.mismatch) if answer.HasField("mismatch") else None,
    )


def is_serving(answer: health_pb2.HealthCheckResponse) -> bool:
    """Read whether a server is ready."""
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def audio_info(audio: pb.AudioInfo) -> AudioInfo:
    """Read the format of audio, and what is known of it."""
    speech = audio.speech if audio.HasField("speech") else None
    bandwidth = audio.bandwidth_hz if audio.HasField("bandwidth_hz") else None
    evidence = evidence_of(audio.evidence) if audio.HasField("evidence") else None
    return AudioInfo(
        audio.seconds, audio.sample_rate, audio.channels, speech, audio.channel or None, bandwidth, evidence
    )


def evidence_of(evidence: pb.Evidence) -> Evidence:
    """Read what an answer rests on."""
    return Evidence(
        speech_s=evidence.speech_s,
        snr_db=evidence.snr_db if evidence.HasField("snr_db") else None,
        bandwidth_hz=evidence.bandwidth_hz,
        clipping=evidence.clipping,
        level_db=evidence.level_db if evidence.HasField("level_db") else None,
    )


def mismatch_of(mismatch: pb.Mismatch) -> Mismatch:
    """Read how two recordings differ."""
    return Mismatch(**{field.name: value for field, value in mismatch.ListFields()})


def timings(phases: pb.Timings) -> Timings:
    """Read the seconds of each phase."""
    return Timings(phases.decode_s, phases.queue_s, phases.inference_s, phases.encode_s)


def _answers(answers: Iterable[pb.ModelAnswer]) -> tuple[Answer, ...]:
    return tuple(_answer(answer) for answer in answers if not answer.HasField("failure"))


def _failures(answers: Iterable[pb.ModelAnswer] | Iterable[pb.Embedding]) -> tuple[ModelFailure, ...]:
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
        timeline=tuple(_segment(each) for each in answer.timeline),
        turn=_segment(answer.turn) if answer.HasField("turn") else None,
        threshold_basis=basis_of(answer.threshold_basis),
    )


def _segment(segment: pb.Segment) -> Segment:
    return Segment(segment.start_s, segment.end_s, segment.speaker, segment.probability, segment.known)


def basis_of(basis: pb.ThresholdBasis.ValueType) -> ThresholdBasis:
    """Read what a threshold rests on."""
    return _BASES.get(basis, ThresholdBasis.UNSAID)


def explanation(message: pb.Explanation) -> Explanation:
    """Read saliency maps.

    Raises:
        ServerFailureError: a map contradicts itself or the contract.
    """
    return Explanation(
        target_speaker=message.target_speaker,
        maps={stage_name(plane.stage): _plane(plane, stage_name(plane.stage)) for plane in message.saliency},
        log_mel=_plane(message.log_mel, "log-mel") if message.HasField("log_mel") else None,
        listening={stage_name(each.stage): _listening(each) for each in message.listening},
    )


def _listening(message: pb.Listening) -> Listening:
    scores = message.score, message.kept_score, message.removed_score
    return Listening(message.kept, message.removed, *scores, message.increase, message.drop)


def _plane(plane: pb.Plane, name: str) -> Plane:
    axes_fit = len(plane.frequencies_hz) == plane.rows and len(plane.times_s) == plane.columns
    values = _values(plane)
    if not axes_fit or values.size != plane.rows * plane.columns:
        raise ServerFailureError(
            f"the server's {name} plane is declared as {plane.rows} x {plane.columns}, but holds {values.size} values, "
            f"{len(plane.frequencies_hz)} frequencies and {len(plane.times_s)} times"
        )
    return Plane(
        values=values.reshape(plane.rows, plane.columns),
        frequencies_hz=np.array(plane.frequencies_hz, dtype=np.float32),
        times_s=np.array(plane.times_s, dtype=np.float32),
        picture=plane.values if plane.encoding == pb.ENCODING_PNG else None,
    )


def _values(plane: pb.Plane) -> NDArray[np.float32]:
    """Decode the values of a plane to float32 [rows * columns]."""
    scale, offset = np.float32(plane.scale), np.float32(plane.offset)
    if plane.encoding == pb.ENCODING_UINT8:
        return np.frombuffer(plane.values, dtype=np.uint8).astype(np.float32) * scale + offset
    if plane.encoding == pb.ENCODING_PNG:
        try:
            levels = png_levels(plane.values, plane.rows, plane.columns)
        except ValueError as error:
            raise ServerFailureError(f"the server sent {error}") from error
        return levels.astype(np.float32) * scale + offset
    kind, size = ("float16", 2) if plane.encoding == pb.ENCODING_FLOAT16 else ("float32", 4)
    if len(plane.values) % size:
        raise ServerFailureError(f"the server sent {len(plane.values)} bytes as {kind} values of {size} bytes")
    values = np.frombuffer(plane.values, dtype=f"<f{size}").astype(np.float32)
    return values * scale if size == 2 else values


def stage_name(number: pb.Stage.ValueType) -> str:
    """Read the name of a stage.

    Raises:
        ServerFailureError: this client does not know the stage.
    """
    try:
        return _STAGE_NAMES[number]
    except KeyError:
        raise ServerFailureError(f"the server named a stage that this client does not know (number {number})") from None


def png_levels(png: bytes, rows: int, columns: int) -> NDArray[np.uint8]:
    """Decode a PNG of a map: 8 bits a pixel, without filters, as the server writes it.

    Returns:
        The levels, uint8 [rows, columns], low frequencies first.

    Raises:
        ValueError: it is not such a PNG, or of another size.
    """
    try:
        width, height, depth = struct.unpack_from(">IIB", png, 16)
        data, at = b"", 8
        while at < len(png):
            length, kind = struct.unpack_from(">I4s", png, at)
            data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
            at += 12 + length
        lines = np.frombuffer(zlib.decompress(data), np.uint8)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"not a PNG: {error}") from error
    if (width, height, depth) != (columns, rows, 8) or lines.size != rows * (columns + 1):
        raise ValueError(f"a picture of {height} x {width} pixels of {depth} bits, not {rows} x {columns} of 8")
    return lines.reshape(rows, columns + 1)[::-1, 1:]
