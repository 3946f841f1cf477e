"""Builds the messages that the clients send; knows nothing of channels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb

_T = TypeVar("_T")

AudioSource = str | Path | bytes | NDArray[Any]
"""A file's path, a file's content, or samples: floats in [-1, 1] or int16, [samples] or [samples, channels]."""

StageName = Literal["s1", "s2", "s3", "s4", "fused"]

STAGES: dict[str, pb.Stage.ValueType] = {
    "s1": pb.STAGE_S1,
    "s2": pb.STAGE_S2,
    "s3": pb.STAGE_S3,
    "s4": pb.STAGE_S4,
    "fused": pb.STAGE_FUSED,
}
_RESOLUTIONS = {"features": pb.RESOLUTION_FEATURES, "native": pb.RESOLUTION_NATIVE}
_ENCODINGS = {
    "float32": pb.ENCODING_FLOAT32,
    "float16": pb.ENCODING_FLOAT16,
    "uint8": pb.ENCODING_UINT8,
    "png": pb.ENCODING_PNG,
}


@dataclass(frozen=True)
class Explain:
    """Which saliency maps to ask for.

    `resolution="features"` gives maps on the log-mel's own grid, each divided by its maximum; `"native"` the raw
    values as the stage computes them (`fused` has none). `encoding="float16"` is half the bytes, `"uint8"` a quarter at
    1/255 of the range, and `"png"` a picture of that; the client decodes them, so that results are float32 in any case.
    """

    stages: Sequence[StageName] = ("fused",)
    resolution: Literal["features", "native"] = "features"
    encoding: Literal["float32", "float16", "uint8", "png"] = "float32"
    target: str | None = None
    """Explain this speaker's score; None: the best speaker's."""


def identify_request(
    audio: AudioSource,
    rate: int | None,
    *,
    variants: str | Sequence[str],
    top_k: int | None,
    explain: bool | Explain,
    with_embedding: bool,
) -> pb.IdentifyRequest:
    """Build the request for one utterance.

    Raises:
        OSError: the file cannot be read.
        ValueError: a rate is missing or not wanted, samples have a wrong type or shape, or a name or number is wrong.
    """
    return pb.IdentifyRequest(
        audio=audio_message(audio, rate),
        models=selectors(variants),
        top_k=_top_k(top_k),
        explain=explain_message(explain),
        with_embedding=with_embedding,
    )


def batch_request(audios: Iterable[AudioSource], rate: int | None, **question: Any) -> pb.IdentifyBatchRequest:
    """Build the request for many utterances, of which the same is asked; errors as for `identify_request`."""
    return pb.IdentifyBatchRequest(requests=[identify_request(audio, rate, **question) for audio in audios])


def _top_k(top_k: int | None) -> int:
    if top_k == 0:
        raise ValueError("top_k: 0 speakers make no answer; ask for 1 or more")
    return top_k or 0  # the contract's word for the server's choice


def audio_message(audio: AudioSource, rate: int | None) -> pb.Audio:
    """Build the audio of a request; errors as for `identify_request`."""
    if isinstance(audio, np.ndarray):
        if rate is None:
            raise ValueError("samples need their rate in Hz: identify(samples, rate=16000)")
        return pb.Audio(raw=_raw(audio, rate))
    if rate is not None:
        raise ValueError("a rate belongs to samples only; a file carries its own")
    return pb.Audio(encoded=audio if isinstance(audio, bytes) else Path(audio).read_bytes())


def _raw(samples: NDArray[Any], rate: int) -> pb.RawAudio:
    if samples.ndim not in (1, 2):
        raise ValueError(f"samples must be [samples] or [samples, channels], not {list(samples.shape)}")
    if samples.dtype == np.int16:
        content, sample_format = samples.astype("<i2"), pb.SAMPLE_FORMAT_INT16
    elif np.issubdtype(samples.dtype, np.floating):
        content, sample_format = samples.astype("<f4"), pb.SAMPLE_FORMAT_FLOAT32
    else:
        raise ValueError(f"samples must be floats in [-1, 1] or int16, not {samples.dtype}")
    channels = samples.shape[1] if samples.ndim == 2 else 1
    return pb.RawAudio(samples=content.tobytes(), format=sample_format, sample_rate=rate, channels=channels)


def selectors(variants: str | Sequence[str]) -> list[pb.ModelSelector]:
    """Build the models of a request; errors as for `identify_request`."""
    names = variants.split(",") if isinstance(variants, str) else list(variants)
    if names == ["all"]:
        return []  # the contract's word for every loaded variant
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


def explain_message(explain: bool | Explain) -> pb.ExplainOptions | None:
    """Build what is asked of the maps; None where none are."""
    if not explain:
        return None
    return _explain(Explain() if explain is True else explain)


def _explain(explain: Explain) -> pb.ExplainOptions:
    return pb.ExplainOptions(
        stages=[_choice(STAGES, stage, "stage") for stage in explain.stages],
        resolution=_choice(_RESOLUTIONS, explain.resolution, "resolution"),
        encoding=_choice(_ENCODINGS, explain.encoding, "encoding"),
        target_speaker=explain.target or "",
    )


def _choice(choices: dict[str, _T], name: str, what: str) -> _T:
    if name not in choices:
        raise ValueError(f"{what}: {name!r} is none of {', '.join(choices)}")
    return choices[name]
