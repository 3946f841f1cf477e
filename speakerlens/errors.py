"""The exceptions of calls; each carries the server's message."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, cast

import grpc


class ClientError(Exception):
    """Base of every error of a call; its text is one sentence."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN


class InvalidRequestError(ClientError):
    """The server refused the audio or another field of the request; a retry fails too."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(ClientError):
    """The variant, version or speaker is unknown; the text names the known ones where it can."""

    status = grpc.StatusCode.NOT_FOUND


class UnauthenticatedError(ClientError):
    """The server requires a valid bearer token."""

    status = grpc.StatusCode.UNAUTHENTICATED


class NotPossibleError(ClientError):
    """The server stores no speakers, or the speaker is enrolled with another model; the text says what to do."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class OverloadedError(ClientError):
    """The server is overloaded; retry later, with fewer concurrent calls."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceededError(ClientError):
    """The call did not finish, or could not have finished, within its timeout."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class ServerUnavailableError(ClientError):
    """No server answers at the address, or it is starting or draining."""

    status = grpc.StatusCode.UNAVAILABLE


class ServerFailureError(ClientError):
    """The server failed on a valid request, violated the contract, or is not a speakerlens server."""

    status = grpc.StatusCode.INTERNAL


_BY_STATUS = {
    kind.status: kind
    for kind in (
        InvalidRequestError,
        NotFoundError,
        NotPossibleError,
        UnauthenticatedError,
        OverloadedError,
        DeadlineExceededError,
        ServerUnavailableError,
    )
}


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turn the gRPC error of the enclosed call, sync or awaited, into a `ClientError` that names the server."""
    try:
        yield
    except grpc.RpcError as error:
        call = cast(grpc.Call, error)  # every error that a stub raises is also a call, with a code and details
        raise _client_error(call.code(), call.details() or "", address) from error


def of_failure(code: str, message: str, address: str) -> ClientError:
    """Return the error of one part of an answer, from the name of a gRPC status and the server's message."""
    statuses = grpc.StatusCode.__members__
    return _client_error(statuses.get(code, grpc.StatusCode.UNKNOWN), message, address)


def _client_error(code: grpc.StatusCode, details: str, address: str) -> ClientError:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        # gRPC's own check of the message size: unlike for a full queue, a retry fails too.
        return InvalidRequestError(f"the request is too large for the server at {address}: {details}")
    if code is grpc.StatusCode.UNAVAILABLE:
        return ServerUnavailableError(_unavailable(details, address))
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return UnauthenticatedError(f"the server at {address} requires a token: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        # gRPC's own text, for a deadline that passed on the client's side, adds nothing.
        reason = "" if details.startswith("Deadline Exceeded") or not details else f": {details}"
        return DeadlineExceededError(f"the server at {address} did not answer in time{reason}")
    kind = _BY_STATUS.get(code)
    if kind is None:
        other = code is grpc.StatusCode.UNIMPLEMENTED
        fault = "is not a speakerlens server of this version" if other else f"failed ({code.name})"
        return ServerFailureError(f"the server at {address} {fault}: {details}")
    return kind(details or f"the server at {address} answered {code.name} without a reason")


# Texts of gRPC for a failed handshake, and what they mean; the first match counts.
_HANDSHAKES = (
    (
        "Hostname Verification Check failed",
        "its certificate is for another name; if that is right, set Tls.server_name (--tls-server-name)",
    ),
    ("certificate has expired", "its certificate has expired"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not from a trusted authority; set Tls.ca (--tls-ca) to trust another one",
    ),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS"),
    ("Socket closed", "it closed the connection; it may require TLS, or a client certificate that it trusts"),
)


def _unavailable(details: str, address: str) -> str:
    for words, meaning in _HANDSHAKES:
        if words in details:
            return f"no connection to the server at {address}: {meaning}"
    if "backend unhealthy" in details:
        return f"no server at {address} is ready: they start or stop"
    if "failed to connect" in details.lower():
        reason = details.rpartition("Failed to connect to remote host: ")[2]
        return f"no server answers at {address}: {reason}"
    return f"the server at {address} is not available: {details}"
