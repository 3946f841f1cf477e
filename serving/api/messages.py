"""Messages of `speakerlens.v1` for identification, to and from the values of the pipeline."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar

from speakerlens.measures.evidence import Evidence, Mismatch
from speakerlens.measures.listening import drop
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.bundle import SAMPLE_RATE, ThresholdBasis
from speakerlens.serving.context import Timings
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import InvalidArgumentError, Reason
from speakerlens.serving.models.registry import Selector
from speakerlens.serving.pipeline.answers import Answer, Failed, Identification, Segment, WindowAnswer
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.explain import (
    Encoding,
    ExplainOptions,
    Explanation,
    Listening,
    Plane,
    Resolution,
    StageName,
)
from speakerlens.serving.pipeline.query import Query, QueryOptions
from speakerlens.serving.pipeline.samples import AudioInfo
from speakerlens.serving.pipeline.stream import StreamFormat
from speakerlens.serving.rpc.interceptor import error_status

STAGES: Final[dict[pb.Stage.ValueType, StageName]] = {
    pb.STAGE_S1: "s1",
    pb.STAGE_S2: "s2",
    pb.STAGE_S3: "s3",
    pb.STAGE_S4: "s4",
    pb.STAGE_FUSED: "fused",
}
RESOLUTIONS: Final[dict[int, Resolution]] = {
    pb.RESOLUTION_UNSPECIFIED: Resolution.FEATURES,
    pb.RESOLUTION_FEATURES: Resolution.FEATURES,
    pb.RESOLUTION_NATIVE: Resolution.NATIVE,
}
ENCODINGS: Final[dict[pb.Encoding.ValueType, Encoding]] = {
    pb.ENCODING_UNSPECIFIED: Encoding.FLOAT32,
    pb.ENCODING_FLOAT32: Encoding.FLOAT32,
    pb.ENCODING_FLOAT16: Encoding.FLOAT16,
    pb.ENCODING_UINT8: Encoding.UINT8,
    pb.ENCODING_PNG: Encoding.PNG,
}
SAMPLE_TYPES: Final[dict[int, str]] = {
    pb.SAMPLE_FORMAT_FLOAT32: "float32",
    pb.SAMPLE_FORMAT_INT16: "int16",
    pb.SAMPLE_FORMAT_MULAW: "mulaw",
    pb.SAMPLE_FORMAT_ALAW: "alaw",
}
STAGE_NUMBERS: Final[dict[str, pb.Stage.ValueType]] = {name: number for number, name in STAGES.items()}
ENCODING_NUMBERS: Final = {
    encoding: number for number, encoding in ENCODINGS.items() if number != pb.ENCODING_UNSPECIFIED
}
BASES: Final[dict[ThresholdBasis, pb.ThresholdBasis.ValueType]] = {
    ThresholdBasis.OUT_OF_SET: pb.THRESHOLD_BASIS_OUT_OF_SET_SPEAKERS,
    ThresholdBasis.KNOWN: pb.THRESHOLD_BASIS_KNOWN_SPEAKERS,
    ThresholdBasis.NONE: pb.THRESHOLD_BASIS_NONE,
}
StartT_co = TypeVar("StartT_co", covariant=True)
StartT = TypeVar("StartT")


class StreamPart(Protocol[StartT_co]):
    """A message of a stream of audio: its start, or samples."""

    @property
    def start(self) -> StartT_co:
        """Return the start."""

    @property
    def samples(self) -> bytes:
        """Return samples."""

    def WhichOneof(self, name: Literal["part", b"part"], /) -> Literal["start", "samples"] | None:  # noqa: N802
        """Return which of them is set."""


# A message of a few MB could hold millions of selectors, and block the event loop for a minute.
MAX_MODELS: Final = 64

PRIORITIES: Final = {
    pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.PRIORITY_BULK: Priority.BULK,
}


def query_of(
    request: pb.IdentifyRequest, deadline: float | None, unspecified: Priority = Priority.INTERACTIVE
) -> Query:
    """Return the query of a request; `unspecified` is the priority if the request has none.

    Raises:
        InvalidArgumentError: a field has an invalid value.
    """
    return Query(
        audio=audio_of(request.audio),
        models=selectors_of(request.models),
        top_k=request.top_k,
        explain=explain_of(request.explain, listen=True) if request.HasField("explain") else None,
        with_embedding=request.with_embedding,
        priority=priority_of(request.priority, unspecified),
        deadline=deadline,
    )


def start_of(start: pb.StreamStart, deadline: float | None) -> tuple[QueryOptions, StreamFormat]:
    """Return the query and the sample format of a stream's first message; errors as for `query_of`."""
    query = QueryOptions(
        models=selectors_of(start.models),
        top_k=start.top_k,
        explain=explain_of(start.explain) if start.HasField("explain") else None,
        with_embedding=start.with_embedding,
        priority=priority_of(start.priority),
        deadline=deadline,
    )
    return query, form_of(start)


def form_of(start: pb.StreamStart | pb.SearchStreamStart) -> StreamFormat:
    """Return the sample format of a stream; errors as for `query_of`."""
    sample_type = _sample_type("start.format", start.format)
    channel = _channel("start.channel", start.channel)
    return StreamFormat(sample_type, start.sample_rate, start.channels or 1, channel)


async def stream_of(messages: "AsyncIterator[StreamPart[StartT]]") -> tuple[StartT, AsyncIterator[bytes]]:
    """Return the first message of a stream, and an iterator over its chunks of samples.

    Raises:
        InvalidArgumentError: the first message is not a start. The iterator raises it for a later message without
            samples.
    """
    first = await anext(messages, None)
    if first is None or first.WhichOneof("part") != "start":
        raise InvalidArgumentError(Reason.ARGUMENT, "start: missing; the first message of a stream must be its start")
    return first.start, _chunks(messages)


async def _chunks(messages: "AsyncIterator[StreamPart[Any]]") -> AsyncIterator[bytes]:
    async for message in messages:
        part = message.WhichOneof("part")
        if part == "start":
            raise InvalidArgumentError(Reason.ARGUMENT, "start: sent twice; only the first message may be a start")
        if part is None:
            raise InvalidArgumentError(Reason.ARGUMENT, "samples: missing; every message after the first holds some")
        yield message.samples


def stream_response_of(answer: WindowAnswer | Identification) -> pb.IdentifyStreamResponse:
    """Return the message of a window's answer, or of the answer for the whole."""
    if isinstance(answer, Identification):
        return pb.IdentifyStreamResponse(whole=response_of(answer))
    started = time.monotonic()
    window = pb.WindowAnswer(
        start_s=answer.start_s,
        end_s=answer.end_s,
        speech=answer.speech,
        answers=[_answer(each) for each in answer.answers],
        timings=timings_of(answer.timings),
    )
    window.timings.encode_s += time.monotonic() - started
    return pb.IdentifyStreamResponse(window=window)


def selectors_of(models: Sequence[pb.ModelSelector]) -> tuple[Selector, ...]:
    """Return the models asked for; errors as for `query_of`."""
    if len(models) > MAX_MODELS:
        raise InvalidArgumentError(
            Reason.ARGUMENT, f"models: {len(models)} are asked for; ask for at most {MAX_MODELS}, each once"
        )
    return tuple(Selector(model.variant, model.version) for model in models)


def priority_of(priority: pb.Priority.ValueType, unspecified: Priority = Priority.INTERACTIVE) -> Priority:
    """Return the priority; errors as for `query_of`."""
    if priority == pb.PRIORITY_UNSPECIFIED:
        return unspecified
    if priority not in PRIORITIES:
        raise InvalidArgumentError(Reason.ARGUMENT, f"priority: {priority}; give PRIORITY_INTERACTIVE or PRIORITY_BULK")
    return PRIORITIES[priority]


def audio_of(audio: pb.Audio, field: str = "audio") -> EncodedAudio | RawAudio:
    """Return the audio, not decoded yet; `field` is its name in error messages. Errors as for `query_of`."""
    source = audio.WhichOneof("source")
    if source is None:
        raise InvalidArgumentError(
            Reason.EMPTY, f"{field}: no source; send audio.encoded (a file) or audio.raw (samples)"
        )
    channel = _channel(f"{field}.channel", audio.channel)
    if source == "encoded":
        return EncodedAudio(audio.encoded, channel)
    raw = audio.raw
    sample_type = _sample_type(f"{field}.raw.format", raw.format)
    return RawAudio(raw.samples, sample_type, raw.sample_rate, raw.channels or 1, channel)


def _channel(field: str, number: int) -> int | None:
    """Return a channel, from 0, of a field that counts from 1; None for the mean of all."""
    if number < 0:
        raise InvalidArgumentError(
            Reason.CHANNELS, f"{field}: {number}; give a channel from 1, or 0 for the mean of all"
        )
    return number - 1 if number else None


def _sample_type(field: str, number: int) -> str:
    if number not in SAMPLE_TYPES:
        raise InvalidArgumentError(
            Reason.ARGUMENT,
            f"{field}: {number}; give SAMPLE_FORMAT_FLOAT32 or SAMPLE_FORMAT_INT16, or of a telephone's bytes "
            "SAMPLE_FORMAT_MULAW or SAMPLE_FORMAT_ALAW",
        )
    return SAMPLE_TYPES[number]


def explain_of(options: pb.ExplainOptions, listen: bool = False) -> ExplainOptions:
    """Return which maps to compute and how to encode them; `listen` is whether the call can return their sound.

    Raises:
        InvalidArgumentError: a field has an invalid value.
    """
    if options.listen and not listen:
        raise InvalidArgumentError(
            Reason.ARGUMENT, "explain.listen: only Identify and IdentifyBatch return the sound of maps"
        )
    if len(options.stages) > len(STAGES):
        raise InvalidArgumentError(
            Reason.ARGUMENT, f"explain.stages: {len(options.stages)} are asked for; there are {len(STAGES)}"
        )
    for index, stage in enumerate(options.stages):
        if stage not in STAGES:
            raise InvalidArgumentError(
                Reason.ARGUMENT, f"explain.stages[{index}]: {stage}; give STAGE_S1 to STAGE_S4, or STAGE_FUSED"
            )
    if options.resolution not in RESOLUTIONS:
        raise InvalidArgumentError(
            Reason.ARGUMENT,
            f"explain.resolution: {options.resolution}; give RESOLUTION_FEATURES or RESOLUTION_NATIVE",
        )
    if options.encoding not in ENCODINGS:
        raise InvalidArgumentError(
            Reason.ARGUMENT, f"explain.encoding: {options.encoding}; give ENCODING_FLOAT32, FLOAT16, UINT8 or PNG"
        )
    return ExplainOptions(
        stages=tuple(STAGES[stage] for stage in options.stages) or ("fused",),
        resolution=RESOLUTIONS[options.resolution],
        encoding=ENCODINGS[options.encoding],
        target_speaker=options.target_speaker or None,
        listen=options.listen,
    )


def response_of(result: Identification) -> pb.IdentifyResponse:
    """Return the message of an answer; the time this takes is added to the encode phase."""
    started = time.monotonic()
    response = pb.IdentifyResponse(
        answers=[_answer(answer) for answer in result.answers],
        audio=info_of(result.audio),
        timings=timings_of(result.timings),
    )
    response.timings.encode_s += time.monotonic() - started
    return response


def failure_of(error: Exception) -> pb.Failure:
    """Return the message of an error of one request in a batch; must run in the call's context."""
    code, message = error_status(error)
    return pb.Failure(code=code, message=message)


def batch_response_of(results: Sequence[pb.IdentifyResponse | pb.Failure]) -> pb.IdentifyBatchResponse:
    """Return one message with a copy of each answer of a batch."""
    response = pb.IdentifyBatchResponse()
    for result in results:
        one = response.results.add()
        if isinstance(result, pb.Failure):
            one.failure.CopyFrom(result)
        else:
            one.response.CopyFrom(result)
    return response


def info_of(audio: AudioInfo) -> pb.AudioInfo:
    """Return the message of the audio's format."""
    narrow = audio.bandwidth_hz is not None and audio.bandwidth_hz < SAMPLE_RATE / 2
    return pb.AudioInfo(
        seconds=audio.seconds,
        sample_rate=audio.sample_rate,
        channels=audio.channels,
        speech=audio.speech,
        channel=0 if audio.channel is None else audio.channel + 1,
        bandwidth_hz=audio.bandwidth_hz if narrow else None,
        evidence=None if audio.evidence is None else evidence_message(audio.evidence),
    )


def evidence_message(evidence: Evidence) -> pb.Evidence:
    """Return the message of what an answer rests on."""
    return pb.Evidence(**vars(evidence))


def mismatch_message(mismatch: Mismatch) -> pb.Mismatch:
    """Return the message of how two recordings differ."""
    return pb.Mismatch(**vars(mismatch))


def timings_of(timings: Timings) -> pb.Timings:
    """Return the message of the phases."""
    return pb.Timings(
        decode_s=timings.decode, queue_s=timings.queue, inference_s=timings.inference, encode_s=timings.encode
    )


def _answer(answer: Answer | Failed) -> pb.ModelAnswer:
    if isinstance(answer, Failed):
        failure = pb.Failure(code=answer.code, message=answer.message)
        return pb.ModelAnswer(variant=answer.variant, version=answer.version, failure=failure)
    return pb.ModelAnswer(
        variant=answer.variant,
        version=answer.version,
        speakers=[
            pb.SpeakerScore(speaker=score.speaker, probability=score.probability, logit=score.logit)
            for score in answer.speakers
        ],
        known=answer.known,
        explanation=None if answer.explanation is None else explanation_of(answer.explanation),
        embedding=() if answer.embedding is None else answer.embedding.tolist(),
        timeline=[_segment(each) for each in answer.timeline],
        turn=None if answer.turn is None else _segment(answer.turn),
        threshold_basis=BASES[answer.threshold_basis],
    )


def _segment(segment: Segment) -> pb.Segment:
    return pb.Segment(
        start_s=segment.start_s,
        end_s=segment.end_s,
        speaker=segment.speaker,
        probability=segment.probability,
        known=segment.known,
    )


def explanation_of(explanation: Explanation) -> pb.Explanation:
    """Return the message of the maps."""
    return pb.Explanation(
        target_speaker=explanation.target_speaker,
        saliency=[_plane(plane) for plane in explanation.saliency],
        log_mel=_plane(explanation.log_mel),
        listening=[_listening(each) for each in explanation.listening],
    )


def _listening(listening: Listening) -> pb.Listening:
    return pb.Listening(
        stage=STAGE_NUMBERS[listening.stage],
        kept=listening.kept,
        removed=listening.removed,
        score=listening.score,
        kept_score=listening.kept_score,
        removed_score=listening.removed_score,
        increase=listening.kept_score > listening.score,
        drop=drop(listening.score, listening.kept_score),
    )


def _plane(plane: Plane) -> pb.Plane:
    return pb.Plane(
        stage=pb.STAGE_UNSPECIFIED if plane.stage is None else STAGE_NUMBERS[plane.stage],
        rows=len(plane.frequencies_hz),
        columns=len(plane.times_s),
        encoding=ENCODING_NUMBERS[plane.encoding],
        values=plane.values,
        scale=plane.scale,
        offset=plane.offset,
        frequencies_hz=plane.frequencies_hz.tolist(),
        times_s=plane.times_s.tolist(),
    )
