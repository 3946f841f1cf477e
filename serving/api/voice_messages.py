"""Messages of the calls about voices (Embed, Verify, Enroll) and what the core understands, one into the other."""

import base64
from collections.abc import Sequence
from typing import Final

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.api.messages import (
    audio_of,
    explain_of,
    explanation_of,
    info_of,
    priority_of,
    selectors_of,
    timings_of,
)
from speakerlens.serving.errors import InvalidArgumentError, Reason, quoted
from speakerlens.serving.models.registry import Model, Models, Selector
from speakerlens.serving.pipeline.answers import Failed, Identification
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.enroll import MAX_UTTERANCES, EnrolledSpeaker, named
from speakerlens.serving.pipeline.query import MonitoringScope, Query
from speakerlens.serving.pipeline.verify import VerificationRequest, VerificationResult

# Speakers in one answer.
MAX_PAGE: Final = 1000


def embed_query_of(request: pb.EmbedRequest, deadline: float | None) -> Query:
    """The request as the core understands it.

    Raises:
        InvalidArgumentError: a field has a value that means nothing.
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
    """The core's answer as a message."""
    embeddings = []
    for answer in result.answers:
        message = pb.Embedding(variant=answer.variant, version=answer.version)
        if isinstance(answer, Failed):
            message.failure.CopyFrom(pb.Failure(code=answer.code, message=answer.message))
        elif answer.embedding is not None:
            message.values.extend(answer.embedding.tolist())
        embeddings.append(message)
    return pb.EmbedResponse(embeddings=embeddings, audio=info_of(result.audio), timings=timings_of(result.timings))


def claim_of(request: pb.VerifyRequest, deadline: float | None) -> VerificationRequest:
    """The request as the core understands it; errors as for `embed_query_of`."""
    against = request.WhichOneof("against")
    if against is None:
        raise InvalidArgumentError(
            Reason.ARGUMENT, "against: nothing to compare with; send other (audio) or enrolled_speaker (a name)"
        )
    with named("other"):
        other = audio_of(request.other) if against == "other" else request.enrolled_speaker
    return VerificationRequest(
        audio=audio_of(request.audio),
        against=other,
        explain=explain_of(request.explain) if request.HasField("explain") else None,
        priority=priority_of(request.priority),
        deadline=deadline,
    )


def verify_response_of(verdict: VerificationResult) -> pb.VerifyResponse:
    """The core's answer as a message."""
    explanations = (verdict.explanation, verdict.other_explanation)
    first, second = (None if each is None else explanation_of(each) for each in explanations)
    return pb.VerifyResponse(
        variant=verdict.variant,
        version=verdict.version,
        score=verdict.score,
        threshold=verdict.threshold,
        same=verdict.same,
        explanation=first,
        other_explanation=second,
        audio=info_of(verdict.audio),
        other=None if verdict.other is None else info_of(verdict.other),
        timings=timings_of(verdict.timings),
    )


def utterances_of(request: pb.EnrollRequest) -> list[EncodedAudio | RawAudio]:
    """The audio to enrol with; errors as for `embed_query_of`."""
    if not 1 <= len(request.utterances) <= MAX_UTTERANCES:
        raise InvalidArgumentError(
            Reason.ARGUMENT, f"utterances: {len(request.utterances)}; send 1 to {MAX_UTTERANCES} of the speaker"
        )
    utterances = []
    for index, audio in enumerate(request.utterances):
        with named(f"utterances[{index}]"):
            utterances.append(audio_of(audio))
    return utterances


def speaker_of(enrolled: EnrolledSpeaker) -> pb.EnrolledSpeaker:
    """An enrolled speaker as a message."""
    return pb.EnrolledSpeaker(
        speaker=enrolled.speaker,
        models=[
            pb.EnrolledModel(
                variant=entry.variant,
                version=entry.version,
                utterances=entry.utterances,
                enrolled=entry.enrolled,
                usable=usable,
            )
            for entry, usable in enrolled.entries
        ],
    )


def page_of(request: pb.ListSpeakersRequest) -> tuple[str, int]:
    """After whose name the page begins, and how many speakers it holds.

    Raises:
        InvalidArgumentError: no page can be of that size, or the token is none of the server's.
    """
    if request.page_size < 0:
        raise InvalidArgumentError(Reason.ARGUMENT, f"page_size: {request.page_size}; give 1 to {MAX_PAGE}, or 0")
    try:
        after = base64.b64decode(request.page_token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise InvalidArgumentError(
            Reason.ARGUMENT, f"page_token: {quoted(request.page_token)}; give the next_page_token of the answer before"
        ) from None
    return after, min(request.page_size or MAX_PAGE, MAX_PAGE)


def speakers_response_of(page: tuple[Sequence[EnrolledSpeaker], bool]) -> pb.ListSpeakersResponse:
    """A page of speakers, and the token of the next where there are more."""
    enrolled, more = page
    token = base64.urlsafe_b64encode(enrolled[-1].speaker.encode()).decode() if more else ""
    return pb.ListSpeakersResponse(speakers=[speaker_of(each) for each in enrolled], next_page_token=token)


def one_selector(models: Models, selector: pb.ModelSelector | None) -> Selector:
    """The one model that a request means; None may be left out where one variant is loaded.

    Raises:
        InvalidArgumentError: it is left out, and several are.
        NotFoundError: there is none such.
    """
    if selector is None:
        chosen: list[Model] = list(models.select([]))
        if len(chosen) != 1:
            names = ", ".join(model.bundle.variant for model in chosen)
            raise InvalidArgumentError(Reason.ARGUMENT, f"model: several variants are loaded; name one of {names}")
        return Selector(chosen[0].bundle.variant)
    return Selector(selector.variant, selector.version)
