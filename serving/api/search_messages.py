"""Messages of `speakerlens.v1` for search, to and from the values of the pipeline."""

import time
from collections.abc import Sequence
from typing import Final

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.api.messages import (
    evidence_message,
    explain_of,
    explanation_of,
    form_of,
    info_of,
    mismatch_message,
    priority_of,
    timings_of,
)
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.pipeline.decision import Decision
from speakerlens.serving.pipeline.search import Candidate, SearchAnswer, SearchOptions, SearchResult, SearchWindow
from speakerlens.serving.pipeline.stream import StreamFormat

DECISIONS: Final[dict[Decision, pb.Decision.ValueType]] = {
    Decision.SPEAKER: pb.DECISION_SPEAKER,
    Decision.UNKNOWN: pb.DECISION_UNKNOWN,
    Decision.AMBIGUOUS: pb.DECISION_AMBIGUOUS,
    Decision.UNRELIABLE: pb.DECISION_UNRELIABLE,
}


def search_options_of(
    request: pb.SearchRequest | pb.SearchStreamStart,
    deadline: float | None,
    unspecified: Priority = Priority.INTERACTIVE,
) -> SearchOptions:
    """Return the options of a request; `unspecified` is the priority if the request has none.

    Raises:
        InvalidArgumentError: a field has an invalid value.
    """
    return SearchOptions(
        speakers=tuple(request.speakers),
        top_k=request.top_k,
        explain=explain_of(request.explain) if request.HasField("explain") else None,
        with_outlook=request.with_outlook,
        priority=priority_of(request.priority, unspecified),
        deadline=deadline,
    )


def search_start_of(start: pb.SearchStreamStart, deadline: float | None) -> tuple[SearchOptions, StreamFormat]:
    """Return the options and the sample format of a stream's first message; errors as for `search_options_of`."""
    return search_options_of(start, deadline), form_of(start)


def search_response_of(result: SearchResult) -> pb.SearchResponse:
    """Return the message of an answer; the time this takes is added to the encode phase."""
    started = time.monotonic()
    response = pb.SearchResponse(
        answer=_answer(result.answer), audio=info_of(result.audio), timings=timings_of(result.timings)
    )
    response.timings.encode_s += time.monotonic() - started
    return response


def search_batch_response_of(results: Sequence[pb.SearchResponse | pb.Failure]) -> pb.SearchBatchResponse:
    """Return one message with a copy of each answer of a batch."""
    return pb.SearchBatchResponse(
        results=[
            pb.SearchBatchResult(failure=each) if isinstance(each, pb.Failure) else pb.SearchBatchResult(response=each)
            for each in results
        ]
    )


def search_stream_response_of(answer: SearchWindow | SearchResult) -> pb.SearchStreamResponse:
    """Return the message of a window's answer, or of the answer for the whole."""
    if isinstance(answer, SearchResult):
        return pb.SearchStreamResponse(whole=search_response_of(answer))
    started = time.monotonic()
    window = pb.SearchWindowAnswer(
        start_s=answer.start_s,
        end_s=answer.end_s,
        speech=answer.answer is not None,
        answer=None if answer.answer is None else _answer(answer.answer),
        timings=timings_of(answer.timings),
        evidence=evidence_message(answer.evidence),
    )
    window.timings.encode_s += time.monotonic() - started
    return pb.SearchStreamResponse(window=window)


def _answer(answer: SearchAnswer) -> pb.SearchAnswer:
    calibrated = answer.false_alarm is not None
    best = answer.candidates[0] if answer.candidates else None
    maps = (answer.explanation, answer.difference)
    explanation, difference = (None if each is None else explanation_of(each) for each in maps)
    return pb.SearchAnswer(
        variant=answer.variant,
        version=answer.version,
        decision=DECISIONS[answer.decision],
        speaker=answer.speaker or "",
        candidates=[_candidate(each) for each in answer.candidates],
        margin=answer.margin,
        threshold=answer.threshold,
        false_alarm=answer.false_alarm or 0.0,
        gallery=answer.gallery,
        reasons=[
            pb.SearchReason(
                code=pb.ReasonCode.Value(f"REASON_CODE_{each.code}"),
                value=each.value,
                limit=each.limit,
                text=each.text,
            )
            for each in answer.reasons
        ],
        basis=pb.CALIBRATION_BASIS_OUT_OF_SET_SPEAKERS if calibrated else pb.CALIBRATION_BASIS_NONE,
        explanation=explanation,
        difference=difference,
        outlook=[
            pb.Outlook(condition=each.condition, miss=each.miss, low=each.low, high=each.high)
            for each in answer.outlook
        ],
        mismatch=None if best is None or best.mismatch is None else mismatch_message(best.mismatch),
    )


def _candidate(candidate: Candidate) -> pb.Candidate:
    return pb.Candidate(
        speaker=candidate.speaker,
        cosine=candidate.cosine,
        log_likelihood_ratio=candidate.log_likelihood_ratio,
        probability=candidate.probability,
        exemplars=candidate.exemplars,
        mismatch=None if candidate.mismatch is None else mismatch_message(candidate.mismatch),
    )
