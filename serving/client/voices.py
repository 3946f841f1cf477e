"""Embeddings, comparisons and enrolled speakers: their requests, and what a server answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protos.speakerlens.v1 import identification_pb2 as pb
from serving.client import response
from serving.client.request import AudioSource, Explain, audio_message, explain_message, selectors
from serving.client.results import Explanation


@dataclass(frozen=True)
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


def embeddings(answer: pb.EmbedResponse) -> dict[str, NDArray[np.float32]]:
    """Read embeddings [size], unnormalised, by `act-da@3`; models that failed are left out."""
    return {
        f"{each.variant}@{each.version}": np.array(each.values, dtype=np.float32)
        for each in answer.embeddings
        if not each.HasField("failure")
    }


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
    explanations = [
        response.explanation(getattr(answer, name)) if answer.HasField(name) else None
        for name in ("explanation", "other_explanation")
    ]
    return Comparison(
        answer.variant, answer.version, answer.score, answer.threshold, answer.same, explanations[0], explanations[1]
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
