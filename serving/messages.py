"""Messages of `speakerlens.v1` and what the core understands, one into the other; knows nothing of calls."""

import time
from typing import Final

from protos.speakerlens.v1 import identification_pb2 as pb
from serving.answers import Answer, Failed, Identification
from serving.audio import MODEL_RATE, EncodedAudio, RawAudio
from serving.errors import InvalidArgumentError, Reason
from serving.explanation import Encoding, ExplainOptions, Explanation, Plane, Resolution, StageName
from serving.models import Model, Selector
from serving.priority import Priority
from serving.query import Query
from serving.timing import Timings

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
ENCODINGS: Final[dict[int, Encoding]] = {
    pb.ENCODING_UNSPECIFIED: Encoding.FLOAT32,
    pb.ENCODING_FLOAT32: Encoding.FLOAT32,
    pb.ENCODING_UINT8: Encoding.UINT8,
}
SAMPLE_TYPES: Final[dict[int, str]] = {pb.SAMPLE_FORMAT_FLOAT32: "float32", pb.SAMPLE_FORMAT_INT16: "int16"}
STAGE_NUMBERS: Final[dict[str, pb.Stage.ValueType]] = {name: number for number, name in STAGES.items()}
ENCODING_NUMBERS: Final = {Encoding.FLOAT32: pb.ENCODING_FLOAT32, Encoding.UINT8: pb.ENCODING_UINT8}


PRIORITIES: Final = {
    pb.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.PRIORITY_BULK: Priority.BULK,
}


def query_of(request: pb.IdentifyRequest, deadline: float | None) -> Query:
    """The request as the core understands it.

    Raises:
        InvalidArgumentError: a field has a value that means nothing.
    """
    return Query(
        audio=_audio(request.audio),
        models=tuple(Selector(model.variant, model.version) for model in request.models),
        top_k=request.top_k,
        explain=_explain(request.explain) if request.HasField("explain") else None,
        with_embedding=request.with_embedding,
        priority=_priority(request.priority),
        deadline=deadline,
    )


def _priority(priority: pb.Priority.ValueType) -> Priority:
    if priority not in PRIORITIES:
        raise InvalidArgumentError(Reason.ARGUMENT, f"priority: {priority}; give PRIORITY_INTERACTIVE or PRIORITY_BULK")
    return PRIORITIES[priority]


def _audio(audio: pb.Audio) -> EncodedAudio | RawAudio:
    source = audio.WhichOneof("source")
    if source is None:
        raise InvalidArgumentError(Reason.EMPTY, "audio: no source; send audio.encoded (a file) or audio.raw (samples)")
    if source == "encoded":
        return EncodedAudio(audio.encoded)
    raw = audio.raw
    if raw.format not in SAMPLE_TYPES:
        raise InvalidArgumentError(
            Reason.ARGUMENT, f"audio.raw.format: {raw.format}; give SAMPLE_FORMAT_FLOAT32 or SAMPLE_FORMAT_INT16"
        )
    return RawAudio(raw.samples, SAMPLE_TYPES[raw.format], raw.sample_rate, 1 if raw.channels == 0 else raw.channels)


def _explain(options: pb.ExplainOptions) -> ExplainOptions:
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
            Reason.ARGUMENT, f"explain.encoding: {options.encoding}; give ENCODING_FLOAT32 or ENCODING_UINT8"
        )
    return ExplainOptions(
        stages=tuple(STAGES[stage] for stage in options.stages) or ("fused",),
        resolution=RESOLUTIONS[options.resolution],
        encoding=ENCODINGS[options.encoding],
        target_speaker=options.target_speaker or None,
    )


def response_of(result: Identification) -> pb.IdentifyResponse:
    """The core's answer as a message; the time that takes belongs to the encoding."""
    started = time.monotonic()
    audio = result.audio
    response = pb.IdentifyResponse(
        answers=[_answer(answer) for answer in result.answers],
        audio=pb.AudioInfo(seconds=audio.seconds, sample_rate=audio.sample_rate, channels=audio.channels),
        timings=_timings(result.timings),
    )
    response.timings.encode_s += time.monotonic() - started
    return response


def _timings(timings: Timings) -> pb.Timings:
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
        explanation=None if answer.explanation is None else _explanation(answer.explanation),
        embedding=() if answer.embedding is None else answer.embedding.tolist(),
        timeline=[
            pb.Segment(
                start_s=each.start_s,
                end_s=each.end_s,
                speaker=each.speaker,
                probability=each.probability,
                known=each.known,
            )
            for each in answer.timeline
        ],
    )


def _explanation(explanation: Explanation) -> pb.Explanation:
    return pb.Explanation(
        target_speaker=explanation.target_speaker,
        saliency=[_plane(plane) for plane in explanation.saliency],
        log_mel=_plane(explanation.log_mel),
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


def model_of(model: Model) -> pb.Model:
    """What a loaded model is."""
    bundle = model.bundle
    return pb.Model(
        variant=bundle.variant,
        version=bundle.version,
        speakers=bundle.speakers,
        sample_rate=MODEL_RATE,
        mel_bins=bundle.mel_bins,
        embedding_size=bundle.embedding_size,
        stages=[
            pb.StageInfo(stage=STAGE_NUMBERS[stage.name], tap=stage.tap, rows=stage.rows, stride=stage.stride)
            for stage in bundle.stages
        ],
        code_revision=bundle.code_revision,
        training_data_digest=bundle.training_data_digest,
    )
