"""What can go wrong in a call, as exceptions that carry the server's own sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, cast

import grpc


class ClientError(Exception):
    """Base of every error that a call can end in; its text is one sentence for people."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN


class InvalidRequestError(ClientError):
    """The server refused the audio or another field of the request; sending it again will not help."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(ClientError):
    """The server has no such variant, version or target speaker; the text says what there is."""

    status = grpc.StatusCode.NOT_FOUND


class OverloadedError(ClientError):
    """The server's queue is full; try again later, with fewer calls at a time."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceededError(ClientError):
    """No answer came, or could have come, within the call's timeout."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class ServerUnavailableError(ClientError):
    """No server answers at the address, or it is starting or shutting down."""

    status = grpc.StatusCode.UNAVAILABLE


class ServerFailureError(ClientError):
    """The server failed at a good request, answered against the contract, or is another kind of server."""

    status = grpc.StatusCode.INTERNAL


_BY_STATUS = {
    kind.status: kind
    for kind in (InvalidRequestError, NotFoundError, OverloadedError, DeadlineExceededError, ServerUnavailableError)
}


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turn the gRPC error of the enclosed call, sync or awaited, into a `ClientError` that names the server."""
    try:
        yield
    except grpc.RpcError as error:
        call = cast(grpc.Call, error)  # every error that a stub raises is also a call, with a code and details
        raise _client_error(call.code(), call.details() or "", address) from error


def _client_error(code: grpc.StatusCode, details: str, address: str) -> ClientError:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        # gRPC's own refusal of a message's size: unlike a full queue, waiting will not mend it.
        return InvalidRequestError(f"the request is too large for the server at {address}: {details}")
    if code is grpc.StatusCode.UNAVAILABLE:
        return ServerUnavailableError(_unavailable(details, address))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        # gRPC's own text, for a deadline that passed on the client's side, says nothing that a person needs.
        reason = "" if details.startswith("Deadline Exceeded") or not details else f": {details}"
        return DeadlineExceededError(f"the server at {address} did not answer in time{reason}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ServerFailureError(f"the server at {address} is not a speakerlens server of this version: {details}")
    kind = _BY_STATUS.get(code)
    if kind is None:
        return ServerFailureError(f"the server at {address} failed ({code.name}): {details}")
    return kind(details or f"the server at {address} answered {code.name} without a reason")


def _unavailable(details: str, address: str) -> str:
    if "failed to connect" in details.lower():
        reason = details.rpartition("Failed to connect to remote host: ")[2]
        return f"no server answers at {address}: {reason}"
    return f"the server at {address} is not available: {details}"
