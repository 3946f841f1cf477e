"""A call that came by HTTP, as the rest of the server sees it: gRPC's servicer context, and statuses as HTTP's."""

import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from speakerlens.serving.context import ID_HEADER, RETRY_HEADER, CallContext
from speakerlens.serving.errors import InvalidArgumentError, Reason
from speakerlens.serving.rpc.interceptor import CLIENT_ID

TIMEOUT_HEADER = "x-timeout-ms"
MILLISECONDS = re.compile(r"[0-9]{1,10}")
# As google.rpc.Code has them.
STATUSES: Mapping[str, int] = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# Where a status names less than HTTP can: a body that is too large, late, or of another type.
TOO_LARGE, TOO_SLOW, OTHER_TYPE = 413, 408, 415
# A server that drains frees no place here; another one may answer at once.
DRAIN_RETRY_S = 1.0


class HttpContext:
    """The part of `grpc.aio.ServicerContext` that calls use.

    Args:
        deadline: on the clock of `time.monotonic`, None without one.
        write: sends an answer of a stream; None for single answers.

    Attributes:
        detail: message of the status that the call ended with.
        narrower: HTTP status that says more than the call's own; None where there is none.
    """

    def __init__(self, deadline: float | None, write: Callable[[bytes], Awaitable[None]] | None = None) -> None:
        self._deadline = deadline
        self._write = write
        self._callbacks: list[Callable[[Any], object]] = []
        self._cancelled = False
        self.detail = ""
        self.narrower: int | None = None

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def peer(self) -> str:
        """Return no name: the connections of this port are not among gRPC's."""
        return ""

    def cancelled(self) -> bool:
        """Return whether the client has gone, or the deadline has passed."""
        return self._cancelled

    def cancel(self) -> None:
        """Note that no answer is wanted any more."""
        self._cancelled = True

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call back once the answer was sent, or the client has gone."""
        self._callbacks.append(callback)

    def finish(self) -> None:
        """Run the callbacks."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def set_trailing_metadata(self, metadata: object) -> None:
        """Take the call's metadata, which `headers_of` reads from the call itself."""

    async def send_initial_metadata(self, metadata: object) -> None:
        """Send nothing: the headers go out with the answer."""

    async def write(self, payload: bytes) -> None:
        """Send an answer of a stream."""
        assert self._write is not None, "only streams write"
        await self._write(payload)

    async def abort(self, code: grpc.StatusCode, detail: str) -> None:
        """Take the message of the status that the call ends with."""
        self.detail = detail


def call_of(method: str, headers: Mapping[str, str]) -> CallContext:
    """Return the call of a method, under the client's own id if that is safe in a log line."""
    own = headers.get(ID_HEADER, "")
    return CallContext(method, own if CLIENT_ID.fullmatch(own) else secrets.token_hex(8))


def deadline_of(headers: Mapping[str, str]) -> float | None:
    """Return the deadline that a client sets in milliseconds from now, on the clock of `time.monotonic`.

    Raises:
        InvalidArgumentError: the header is not a number of milliseconds.
    """
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    if not MILLISECONDS.fullmatch(text):
        raise InvalidArgumentError(Reason.ARGUMENT, f"{TIMEOUT_HEADER}: give a whole number of milliseconds")
    return time.monotonic() + int(text) / 1000


def status_of(call: CallContext, context: HttpContext) -> int:
    """Return the HTTP status of a call that has ended."""
    return context.narrower or STATUSES.get(call.status, 500)


def headers_of(call: CallContext, status: int) -> dict[str, str]:
    """Return the headers of an answer: the request's id, when to retry, and how to authenticate."""
    headers = {ID_HEADER: call.id, "cache-control": "no-store"}
    seconds = DRAIN_RETRY_S if call.retry_after_s is None and call.status == "UNAVAILABLE" else call.retry_after_s
    if seconds is not None:
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
        headers[RETRY_HEADER] = str(max(1, round(seconds * 1000)))
    if call.status == "UNAUTHENTICATED":
        headers["www-authenticate"] = "Bearer"
    if status == TOO_SLOW:
        headers["connection"] = "close"
    return headers


def problem(status: int, code: str, detail: str, request_id: str | None = None) -> dict[str, Any]:
    """Return an error as RFC 9457 has it, with the name of the gRPC status and the request's id."""
    found: dict[str, Any] = {"title": code.replace("_", " ").lower(), "status": status, "code": code, "detail": detail}
    return found if request_id is None else {**found, "request_id": request_id}
