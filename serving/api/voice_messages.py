"""Messages of `speakerlens.v1` for embedding, verification and enrolment, to and from the values of the pipeline."""

import base64
from collections.abc import Sequence
from typing import Final

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.api.messages import (
    BASES,
    audio_of,
    explain_of,
    explanation_of,
    info_of,
    mismatch_message,
    priority_of,
    selectors_of,
    timings_of,
)
from speakerlens.serving.errors import InvalidArgumentError, Reason, quoted
from speakerlens.serving.models.registry import Model, Models, Selector
from speakerlens.serving.pipeline.answers import Failed, Identification
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.enroll import MAX_UTTERANCES, EnrolledSpeaker
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import Query
from speakerlens.serving.pipeline.verify import VerificationRequest, VerificationResult

# Most speakers in one answer.
MAX_PAGE: Final = 1000


def embed_query_of(request: pb.EmbedRequest, deadline: float | None) -> Query:
    """Return the query of a request.

    Raises:
        InvalidArgumentError: a field has an invalid value.
    """
    return Query(
        audio=audio_of(request.audio),
        models=selectors_of(request.models),
        with_embedding=True,
        priority=priority_of(request.priority),
        deadline=deadline,
        monitoring=MonitoringScope.SOUND,
    )


def embed_response_of(result: Identification) -> pb.EmbedResponse:
    """Return the message of an answer."""
    embeddings = []
    for answer in result.answers:
        message = pb.Embedding(variant=answer.variant, version=answer.version)
        if isinstance(answer, Failed):
            message.failure.CopyFrom(pb.Failure(code=answer.code, message=answer.message))
        elif answer.embedding is not None:
            message.values.extend(answer.embedding.tolist())
        embeddings.append(message)
    return pb.EmbedResponse(embeddings=embeddings, audio=info_of(result.audio), timings=timings_of(result.timings))


def verification_request_of(request: pb.VerifyRequest, deadline: float | None) -> VerificationRequest:
    """Return the verification of a request; errors as for `embed_query_of`."""
    against = request.WhichOneof("against")
    if against is None:
        raise InvalidArgumentError(
            Reason.ARGUMENT, "against: nothing to compare with; send other (audio) or enrolled_speaker (a name)"
        )
    other = audio_of(request.other, "other") if against == "other" else request.enrolled_speaker
    return VerificationRequest(
        audio=audio_of(request.audio),
        against=other,
        explain=explain_of(request.explain) if request.HasField("explain") else None,
        priority=priority_of(request.priority),
        deadline=deadline,
    )


def verify_response_of(result: VerificationResult) -> pb.VerifyResponse:
    """Return the message of an answer."""
    explanations = (result.explanation, result.other_explanation)
    first, second = (None if each is None else explanation_of(each) for each in explanations)
    return pb.VerifyResponse(
        variant=result.variant,
        version=result.version,
        score=result.score,
        threshold=result.threshold,
        same=result.same,
        explanation=first,
        other_explanation=second,
        audio=info_of(result.audio),
        other=None if result.other is None else info_of(result.other),
        timings=timings_of(result.timings),
        threshold_basis=BASES[result.threshold_basis],
        mismatch=None if result.mismatch is None else mismatch_message(result.mismatch),
    )


def utterances_of(request: pb.EnrollRequest) -> list[EncodedAudio | RawAudio]:
    """Return the utterances to enrol with; errors as for `embed_query_of`."""
    if not 1 <= len(request.utterances) <= MAX_UTTERANCES:
        raise InvalidArgumentError(
            Reason.ARGUMENT, f"utterances: {len(request.utterances)}; send 1 to {MAX_UTTERANCES} of the speaker"
        )
    return [audio_of(audio, f"utterances[{index}]") for index, audio in enumerate(request.utterances)]


def replaces_of(request: pb.EnrollRequest) -> bool:
    """Return whether the utterances replace what is stored; errors as for `embed_query_of`."""
    if request.mode not in pb.EnrollMode.values():
        raise InvalidArgumentError(
            Reason.ARGUMENT, f"mode: {request.mode}; give ENROLL_MODE_REPLACE or ENROLL_MODE_ADD"
        )
    return request.mode != pb.ENROLL_MODE_ADD


def enroll_response_of(enrolled: EnrolledSpeaker) -> pb.EnrollResponse:
    """Return the message of a new enrolment."""
    return pb.EnrollResponse(
        speaker=speaker_of(enrolled),
        without_speech=[index for index, each in enumerate(enrolled.utterances) if not each.audio.speech],
        utterances=[
            pb.EnrolledUtterance(
                audio=info_of(each.audio), stored=True, recording=each.recording or "", agreement=each.agreement
            )
            for each in enrolled.utterances
        ],
    )


def speaker_of(enrolled: EnrolledSpeaker) -> pb.EnrolledSpeaker:
    """Return the message of an enrolled speaker."""
    return pb.EnrolledSpeaker(
        speaker=enrolled.speaker,
        models=[
            pb.EnrolledModel(
                variant=entry.variant,
                version=entry.version,
                utterances=entry.utterances,
                enrolled=entry.enrolled,
                usable=usable,
                exemplars=entry.exemplars,
                must_enroll_again=enrolled.must_enroll_again,
            )
            for entry, usable in enrolled.entries
        ],
    )


def page_of(request: pb.ListSpeakersRequest) -> tuple[str, int]:
    """Return the name after which a page begins, and the most speakers it holds.

    Raises:
        InvalidArgumentError: the size is negative, or the token is not one of the server's.
    """
    if request.page_size < 0:
        raise InvalidArgumentError(Reason.ARGUMENT, f"page_size: {request.page_size}; give 1 to {MAX_PAGE}, or 0")
    try:
        after = base64.b64decode(request.page_token, altchars=b"-_", validate=True).decode()
    except ValueError:
        after = "\0"
    if "\0" in after:  # in no name, and PostgreSQL refuses it
        raise InvalidArgumentError(
            Reason.ARGUMENT, f"page_token: {quoted(request.page_token)}; give the next_page_token of the answer before"
        )
    return after, min(request.page_size or MAX_PAGE, MAX_PAGE)


def speakers_response_of(page: tuple[Sequence[EnrolledSpeaker], bool]) -> pb.ListSpeakersResponse:
    """Return the message of a page of speakers, with the token of the next page if there are more."""
    enrolled, more = page
    token = base64.urlsafe_b64encode(enrolled[-1].speaker.encode()).decode() if more else ""
    return pb.ListSpeakersResponse(speakers=[speaker_of(each) for each in enrolled], next_page_token=token)


def one_selector(models: Models, selector: pb.ModelSelector | None) -> Selector:
    """Return the selector of a request for one model; it may be None if one variant is loaded.

    Raises:
        InvalidArgumentError: it is None, and several variants are loaded.
    """
    if selector is None:
        chosen: list[Model] = list(models.select([]))
        if len(chosen) != 1:
            names = ", ".join(model.bundle.variant for model in chosen)
            raise InvalidArgumentError(Reason.ARGUMENT, f"model: several variants are loaded; name one of {names}")
        return Selector(chosen[0].bundle.variant)
    return Selector(selector.variant, selector.version)
