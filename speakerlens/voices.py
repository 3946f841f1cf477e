"""Embeddings, comparisons and enrolled speakers: their requests, and what a server answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speakerlens import response
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.request import AudioSource, Explain, audio_message, explain_message, selectors
from speakerlens.results import AudioInfo, Explanation, ModelFailure, Timings


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The embeddings of one utterance."""

    by_model: Mapping[str, NDArray[np.float32]]
    """[size], unnormalised, by model such as `act-da@3`, in the order asked for."""
    audio: AudioInfo
    timings: Timings
    failures: tuple[ModelFailure, ...] = ()
    """Models that failed while others answered."""

    def __getitem__(self, variant: str) -> NDArray[np.float32]:
        """Return the embedding of `act-da` (the first one, if several versions were asked) or of `act-da@3`."""
        for name, values in self.by_model.items():
            if variant in (name, name.rpartition("@")[0]):
                return values
        for failure in self.failures:
            if variant in (failure.variant, failure.name):
                raise KeyError(f"{failure.name} failed ({failure.code}): {failure.message}")
        raise KeyError(f"no embedding of {variant!r}; there is: {', '.join(self.by_model)}")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Whether two voices are one."""

    variant: str
    version: int
    score: float
    """Cosine of the embeddings, -1 to 1."""
    threshold: float
    """The model's calibrated threshold for such a score."""
    same: bool
    """Whether the score reaches the threshold."""
    explanation: Explanation | None
    """Where the model listened in the audio for this score; None unless asked for."""
    other_explanation: Explanation | None
    """The same in the other utterance, where there is one."""
    audio: AudioInfo
    other: AudioInfo | None
    """None where the voice was compared with an enrolled speaker's."""
    timings: Timings

    @property
    def name(self) -> str:
        """Variant and version of the model: `act-da@3`."""
        return f"{self.variant}@{self.version}"


@dataclass(frozen=True)
class EnrolledModel:
    """What is stored of a speaker for one model."""

    variant: str
    version: int
    utterances: int
    enrolled: str
    """UTC, ISO 8601."""
    usable: bool
    """False: the bundle that made the embeddings is not loaded."""


@dataclass(frozen=True)
class EnrolledSpeaker:
    """An enrolled speaker, and the models that can verify it."""

    speaker: str
    models: tuple[EnrolledModel, ...]


def embed_request(audio: AudioSource, rate: int | None, variants: str | Sequence[str]) -> pb.EmbedRequest:
    """Build the request; errors as for `identify_request`."""
    return pb.EmbedRequest(audio=audio_message(audio, rate), models=selectors(variants))


def embeddings(answer: pb.EmbedResponse) -> Embeddings:
    """Read embeddings."""
    return Embeddings(
        by_model={
            f"{each.variant}@{each.version}": np.array(each.values, dtype=np.float32)
            for each in answer.embeddings
            if not each.HasField("failure")
        },
        audio=response.audio_info(answer.audio),
        timings=response.timings(answer.timings),
        failures=response.failures(answer.embeddings),
    )


def verify_request(
    audio: AudioSource,
    other: AudioSource | None,
    speaker: str | None,
    rate: int | None,
    variant: str | None,
    explain: bool | Explain,
) -> pb.VerifyRequest:
    """Build the request; a ValueError where there is not exactly one thing to compare with."""
    if (other is None) == (speaker is None):
        raise ValueError("compare with another utterance, or with an enrolled speaker: verify(a, b) or speaker=NAME")
    request = pb.VerifyRequest(audio=audio_message(audio, rate), explain=explain_message(explain))
    if other is not None:
        request.other.CopyFrom(audio_message(other, rate))
    else:
        request.enrolled_speaker = speaker or ""
    if variant is not None:
        [model] = selectors([variant])
        request.model.CopyFrom(model)
    return request


def comparison(answer: pb.VerifyResponse) -> Comparison:
    """Read a comparison."""
    first, second = (
        response.explanation(getattr(answer, name)) if answer.HasField(name) else None
        for name in ("explanation", "other_explanation")
    )
    return Comparison(
        variant=answer.variant,
        version=answer.version,
        score=answer.score,
        threshold=answer.threshold,
        same=answer.same,
        explanation=first,
        other_explanation=second,
        audio=response.audio_info(answer.audio),
        other=response.audio_info(answer.other) if answer.HasField("other") else None,
        timings=response.timings(answer.timings),
    )


def enroll_request(
    speaker: str, utterances: Sequence[AudioSource], rate: int | None, variants: str | Sequence[str]
) -> pb.EnrollRequest:
    """Build the request; errors as for `identify_request`."""
    messages = [audio_message(each, rate) for each in utterances]
    return pb.EnrollRequest(speaker=speaker, utterances=messages, models=selectors(variants))


def enrolled(message: pb.EnrolledSpeaker) -> EnrolledSpeaker:
    """Read an enrolled speaker."""
    return EnrolledSpeaker(
        message.speaker,
        tuple(
            EnrolledModel(each.variant, each.version, each.utterances, each.enrolled, each.usable)
            for each in message.models
        ),
    )
