"""Read the messages that a server answers searches with; independent of gRPC channels."""

from typing import Any

from speakerlens.errors import ClientError, ServerFailureError, of_failure
from speakerlens.model_results import Outlook
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.responses import audio_info, evidence_of, explanation, mismatch_of, timings
from speakerlens.search_results import (
    Candidate,
    Decision,
    SearchAnswer,
    SearchReason,
    SearchResult,
    SearchWindow,
)

_DECISIONS = {
    pb.DECISION_SPEAKER: Decision.SPEAKER,
    pb.DECISION_UNKNOWN: Decision.UNKNOWN,
    pb.DECISION_AMBIGUOUS: Decision.AMBIGUOUS,
    pb.DECISION_UNRELIABLE: Decision.UNRELIABLE,
}
_CODE_PREFIX = "REASON_CODE_"


def search_result(response: pb.SearchResponse) -> SearchResult:
    """Read the answer to one utterance.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    return SearchResult(**_fields(response.answer), audio=audio_info(response.audio), timings=timings(response.timings))


def search_batch(response: pb.SearchBatchResponse, count: int, address: str) -> tuple[SearchResult | ClientError, ...]:
    """Read the answers to `count` utterances; the error of one stands in its place.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    if len(response.results) != count:
        raise ServerFailureError(f"the server at {address} sent {len(response.results)} results for {count} utterances")
    return tuple(
        of_failure(each.failure.code, each.failure.message, address)
        if each.HasField("failure")
        else search_result(each.response)
        for each in response.results
    )


def search_stream_answer(message: pb.SearchStreamResponse) -> SearchWindow | SearchResult:
    """Read one answer of a stream: of a window, or of the whole.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    kind = message.WhichOneof("answer")
    if kind == "whole":
        return search_result(message.whole)
    if kind == "window":
        window = message.window
        return SearchWindow(
            start_s=window.start_s,
            end_s=window.end_s,
            answer=SearchAnswer(**_fields(window.answer)) if window.HasField("answer") else None,
            evidence=evidence_of(window.evidence),
            timings=timings(window.timings),
        )
    raise ServerFailureError("the server sent an answer of a kind that this client does not know")


def _fields(answer: pb.SearchAnswer) -> dict[str, Any]:
    """Return the fields of a `SearchAnswer`."""
    if answer.decision not in _DECISIONS:
        raise ServerFailureError(f"the server sent a decision that this client does not know: {answer.decision}")
    calibrated = answer.basis == pb.CALIBRATION_BASIS_OUT_OF_SET_SPEAKERS
    return {
        "variant": answer.variant,
        "version": answer.version,
        "decision": _DECISIONS[answer.decision],
        "speaker": answer.speaker or None,
        "candidates": tuple(_candidate(each) for each in answer.candidates),
        "margin": answer.margin,
        "threshold": answer.threshold if calibrated else None,
        "false_alarm": answer.false_alarm if calibrated else None,
        "gallery": answer.gallery,
        "reasons": tuple(SearchReason(_code(each.code), each.value, each.limit, each.text) for each in answer.reasons),
        "explanation": explanation(answer.explanation) if answer.HasField("explanation") else None,
        "difference": explanation(answer.difference) if answer.HasField("difference") else None,
        "outlook": tuple(Outlook(each.condition, each.miss, each.low, each.high) for each in answer.outlook),
    }


def _code(code: pb.ReasonCode.ValueType) -> str:
    """Return the name of a reason; that of a newer server by its number."""
    try:
        return pb.ReasonCode.Name(code).removeprefix(_CODE_PREFIX)
    except ValueError:
        return str(int(code))


def _candidate(candidate: pb.Candidate) -> Candidate:
    return Candidate(
        speaker=candidate.speaker,
        cosine=candidate.cosine,
        log_likelihood_ratio=candidate.log_likelihood_ratio,
        probability=candidate.probability,
        exemplars=candidate.exemplars,
        mismatch=mismatch_of(candidate.mismatch) if candidate.HasField("mismatch") else None,
    )
