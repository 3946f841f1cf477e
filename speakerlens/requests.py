"""Build the messages that a client sends; independent of gRPC channels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import IOBase
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.samples import PACKED, SupportsArray, as_array, packed, with_rate

_T = TypeVar("_T")

RawEncoding = Literal["int16", "float32", "mulaw", "alaw", "uint8", "int24", "int32", "float64"]


@dataclass(frozen=True)
class RawSamples:
    """Samples as bytes without a header, such as those of a telephone line: mu-law or A-law at 8,000 Hz."""

    data: bytes
    encoding: RawEncoding = "mulaw"
    """Interleaved and little-endian; `int24` has three bytes a sample, `uint8` its zero at 128, `mulaw` and `alaw` are
    those of ITU-T G.711"""
    rate: int = 8_000
    """Hz"""
    channels: int = 1


@dataclass(frozen=True)
class Channel:
    """One channel of audio, such as one side of a call; otherwise the mean of all channels is used."""

    audio: "AudioSource"
    number: int
    """From 1"""


Samples = SupportsArray | Sequence[float]
"""Samples as an array, tensor or list (`speakerlens.samples.as_array`)."""

AudioSource = (
    str
    | PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Samples
    | tuple[Samples, int]
    | tuple[int, Samples]
    | Mapping[str, Any]
    | RawSamples
    | Channel
)
"""A file's path, a file's content, an open file, or samples: floats in [-1, 1], or int16, int32 or uint8, [samples],
[samples, channels] or [channels, samples], alone or with their rate in Hz, in a pair or a dictionary
(`speakerlens.samples.with_rate`); or samples as bytes, or one channel of any of these."""

Chunk = bytes | Samples
"""Samples of a stream: bytes in the encoding of its options, or samples as of an utterance."""

StageName = Literal["s1", "s2", "s3", "s4", "fused"]

STAGES: dict[str, pb.Stage.ValueType] = {
    "s1": pb.STAGE_S1,
    "s2": pb.STAGE_S2,
    "s3": pb.STAGE_S3,
    "s4": pb.STAGE_S4,
    "fused": pb.STAGE_FUSED,
}
_RESOLUTIONS = {"features": pb.RESOLUTION_FEATURES, "native": pb.RESOLUTION_NATIVE}
SAMPLE_FORMATS: dict[str, pb.SampleFormat.ValueType] = {
    "int16": pb.SAMPLE_FORMAT_INT16,
    "float32": pb.SAMPLE_FORMAT_FLOAT32,
    "mulaw": pb.SAMPLE_FORMAT_MULAW,
    "alaw": pb.SAMPLE_FORMAT_ALAW,
}
_ENCODINGS = {
    "float32": pb.ENCODING_FLOAT32,
    "float16": pb.ENCODING_FLOAT16,
    "uint8": pb.ENCODING_UINT8,
    "png": pb.ENCODING_PNG,
}


@dataclass(frozen=True)
class Explain:
    """Which saliency maps to return.

    `resolution="features"` returns maps on the grid of the log-mel, each divided by its maximum; `"native"` the raw
    values at the resolution of the stage (not for `fused`). `encoding="float16"` takes half the bytes, `"uint8"` a
    quarter with an error of at most 1/510 of the range, and `"png"` adds a picture of the same 8-bit values. Results
    are float32 in every case.
    """

    stages: StageName | Sequence[StageName] = ("fused",)
    resolution: Literal["features", "native"] = "features"
    encoding: Literal["float32", "float16", "uint8", "png"] = "float32"
    target: str | None = None
    """Explain the score of this speaker; None: of the best speaker."""
    listen: bool = False
    """Return the sound that each map keeps and removes, and its faithfulness (`identify` and `identify_batch`)."""


ExplainChoice = bool | StageName | Sequence[StageName] | Explain
"""True for the fused map, the name of a stage or several, or an `Explain`."""


def identify(
    audio: AudioSource,
    rate: int | None,
    variants: str | Sequence[str],
    top_k: int | None,
    explain: ExplainChoice,
    with_embedding: bool,
) -> pb.IdentifyRequest:
    """Build the request for one utterance; the arguments are those of `SpeakerClient.identify`.

    Raises:
        OSError: the file cannot be read.
        ValueError: a rate is missing or not allowed, samples have a wrong type or shape, or a name or number is not
            valid.
    """
    if top_k == 0:
        raise ValueError("top_k: 0 is not a number of speakers; pass 1 or more")
    return pb.IdentifyRequest(
        audio=audio_message(audio, rate),
        models=selectors(variants),
        top_k=top_k or 0,  # 0 leaves the number to the server
        explain=explain_options(explain),
        with_embedding=with_embedding,
    )


def identify_batch(audios: Iterable[AudioSource], *options: Any) -> pb.IdentifyBatchRequest:
    """Build the request for many utterances with the same options; arguments and errors as of `identify`."""
    return pb.IdentifyBatchRequest(requests=[identify(audio, *options) for audio in audios])


def embed(audio: AudioSource, rate: int | None, variants: str | Sequence[str]) -> pb.EmbedRequest:
    """Build the request for embeddings; errors as of `identify`."""
    return pb.EmbedRequest(audio=audio_message(audio, rate), models=selectors(variants))


def verify(
    audio: AudioSource,
    other: AudioSource | None,
    speaker: str | None,
    rate: int | None,
    variant: str | None,
    explain: ExplainChoice,
) -> pb.VerifyRequest:
    """Build the request for a comparison; errors as of `identify`.

    Raises:
        ValueError: not exactly one of `other` and `speaker` is given.
    """
    if (other is None) == (speaker is None):
        raise ValueError("compare with another utterance, or with an enrolled speaker: verify(a, b) or speaker=NAME")
    request = pb.VerifyRequest(audio=audio_message(audio, rate), explain=explain_options(explain))
    if other is not None:
        request.other.CopyFrom(audio_message(other, rate))
    else:
        request.enrolled_speaker = speaker or ""
    if variant is not None:
        [model] = selectors([variant])
        request.model.CopyFrom(model)
    return request


def enroll(
    speaker: str,
    utterances: Sequence[AudioSource],
    rate: int | None,
    variants: str | Sequence[str],
    add: bool = False,
) -> pb.EnrollRequest:
    """Build the request for an enrolment; errors as of `identify`."""
    messages = [audio_message(each, rate) for each in utterances]
    mode = pb.ENROLL_MODE_ADD if add else pb.ENROLL_MODE_UNSPECIFIED
    return pb.EnrollRequest(speaker=speaker, utterances=messages, models=selectors(variants), mode=mode)


def migrate_gallery(variants: str | Sequence[str]) -> pb.MigrateGalleryRequest:
    """Build the request for a migration; errors as of `identify`."""
    return pb.MigrateGalleryRequest(models=selectors(variants))


def audio_message(audio: AudioSource, rate: int | None) -> pb.Audio:
    """Build the message of audio; errors as of `identify`."""
    if isinstance(audio, Channel):
        message = audio_message(audio.audio, rate)
        message.channel = channel_number(audio.number)
        return message
    if isinstance(audio, RawSamples):
        if rate is not None:
            raise ValueError("rate: give it to RawSamples")
        data, encoding = packed(audio.data, audio.encoding)
        if encoding not in SAMPLE_FORMATS:
            raise ValueError(f"encoding: {encoding!r} is not one of {', '.join((*SAMPLE_FORMATS, *PACKED))}")
        form = SAMPLE_FORMATS[encoding]
        raw = pb.RawAudio(samples=data, format=form, sample_rate=audio.rate, channels=audio.channels)
        return pb.Audio(raw=raw)
    held, rate = with_rate(audio, rate)
    samples = as_array(held)
    if samples is not None:
        if rate is None:
            raise ValueError("samples need their rate in Hz: identify(samples, rate=16000)")
        sample_format, data = sample_bytes(samples)
        channels = samples.shape[1] if samples.ndim == 2 else 1
        return pb.Audio(raw=pb.RawAudio(samples=data, format=sample_format, sample_rate=rate, channels=channels))
    content = _content(held)
    if rate is not None:
        raise ValueError("rate: only for samples; a file has its own")
    return pb.Audio(encoded=content)


def _content(file: object) -> bytes:
    """Return the content of a file: of its path, of an open file, or as it is."""
    if isinstance(file, bytes | bytearray | memoryview):
        return bytes(file)
    if isinstance(file, str | PathLike):
        if "://" in str(file):
            raise ValueError(f"audio: {file} is an address; download the file, and give its path or its content")
        return Path(file).expanduser().read_bytes()
    if isinstance(file, IOBase) or callable(getattr(file, "read", None)):
        content = file.read()  # type: ignore[attr-defined]
        if isinstance(content, bytes):
            return content
        raise ValueError('audio: an open file must be in binary mode: open(path, "rb")')
    raise ValueError(
        f"audio: {type(file).__name__} is none of a path, a file's bytes, an open file, samples as an array, tensor or "
        "list of floats, (samples, rate), RawSamples and Channel"
    )


def channel_number(channel: int | None) -> int:
    """Return the field of a channel; raise ValueError if it is not a number from 1."""
    if channel is not None and channel < 1:
        raise ValueError(f"channel: {channel} is not one; channels count from 1")
    return channel or 0


def sample_bytes(samples: NDArray[Any]) -> tuple[pb.SampleFormat.ValueType, bytes]:
    """Return the format of samples and their bytes, interleaved and little-endian."""
    if samples.dtype == np.int16:
        return pb.SAMPLE_FORMAT_INT16, samples.astype("<i2").tobytes()
    return pb.SAMPLE_FORMAT_FLOAT32, samples.astype("<f4").tobytes()


def selectors(variants: str | Sequence[str]) -> list[pb.ModelSelector]:
    """Build the messages of models; raise ValueError for a name that is not valid."""
    names = variants.split(",") if isinstance(variants, str) else list(variants)
    if names == ["all"]:
        return []  # an empty list selects every loaded variant
    if not names:
        raise ValueError('variants: name at least one, or "all"')
    return [_selector(name.strip()) for name in names]


def _selector(name: str) -> pb.ModelSelector:
    variant, at, version = name.partition("@")
    if not variant or variant == "all":
        raise ValueError(f'variants: {name!r} is not a variant; write names such as act-da or act-da@3, or "all" alone')
    if at and not (version.isascii() and version.isdigit() and 0 < int(version) < 2**31):
        raise ValueError(f"variants: {name!r} needs a whole number of 1 or more after @")
    return pb.ModelSelector(variant=variant, version=int(version) if at else 0)


def explain_options(explain: ExplainChoice) -> pb.ExplainOptions | None:
    """Build the message of which maps to return; raise ValueError for a choice that is not valid."""
    if explain is None or isinstance(explain, bool | np.bool_):
        return explain_options(Explain()) if explain else None
    if isinstance(explain, Explain):
        chosen = explain
    elif isinstance(explain, str | Sequence):
        chosen = Explain(stages=explain)
    else:
        names = "True, a stage's name, several names, and Explain"
        raise ValueError(f"explain: {explain!r} is none of {names}")  # noqa: TRY004, as of all arguments
    stages = (chosen.stages,) if isinstance(chosen.stages, str) else chosen.stages
    return pb.ExplainOptions(
        stages=[choice(STAGES, stage, "stage") for stage in stages],
        resolution=choice(_RESOLUTIONS, chosen.resolution, "resolution"),
        encoding=choice(_ENCODINGS, chosen.encoding, "encoding"),
        target_speaker=chosen.target or "",
        listen=chosen.listen,
    )


def choice(choices: dict[str, _T], name: str, field: str) -> _T:
    """Return the value of a name; raise ValueError, which begins with the field, if there is none."""
    if name not in choices:
        raise ValueError(f"{field}: {name!r} is not one of {', '.join(choices)}")
    return choices[name]
