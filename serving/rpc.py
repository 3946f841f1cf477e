"""What surrounds every call: one place that turns errors into statuses, counts, and writes the log line.

Nothing leaves as UNKNOWN or with a stack trace: what was not foreseen is INTERNAL with the request's id, under which
the log has the trace. Messages are parsed and serialised here too: a malformed one is a plain INVALID_ARGUMENT.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving.errors import InvalidArgumentError, Reason, RequestError, UnavailableError
from serving.metrics import NO_VARIANT, Metrics

log = logging.getLogger(__name__)

# Details travel in a header, and clients accept 8 KiB of headers.
DETAIL_CHARACTERS = 2000
# A caller hangs up when its deadline passes, which by the server's count is a network's way too early.
DEADLINE_SLACK_SECONDS = 0.05
ID_HEADER = "x-request-id"

Handler = Callable[[Any, Any], Awaitable[Any]]


@dataclass
class Call:
    """What is known of the call in work; the service fills in the variants once it knows them."""

    method: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    variant: str = NO_VARIANT
    started: float = field(default_factory=time.monotonic)
    status: str = "OK"
    detail: str = ""


current_call: ContextVar[Call] = ContextVar("current_call")


class Gate:
    """Lets calls in and counts them, or says why not: `closed` is the reason, None is open."""

    def __init__(self) -> None:
        self.closed: str | None = "the server is starting"
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, context: Any) -> None:
        """Lets a call in until it is over, which is when its answer has been handed to the network.

        Raises:
            UnavailableError: the gate is closed.
        """
        if self.closed is not None:
            raise UnavailableError(Reason.NOT_SERVING, f"{self.closed}; try again, or ask another replica")
        self._inside += 1
        self._empty.clear()
        context.add_done_callback(self._leave)

    async def emptied(self, seconds: float) -> bool:
        """Waits until no call is inside; whether that came within `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)
        return self._empty.is_set()

    def _leave(self, _context: Any) -> None:
        self._inside -= 1
        if not self._inside:
            self._empty.set()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Surrounds the unary calls of one service; other services (health, reflection) pass untouched.

    Args:
        service: full name of the service.
        gate: every call that is answered goes through it.
        metrics: counts every call once.
    """

    def __init__(self, service: str, gate: Gate, metrics: Metrics) -> None:
        self._prefix = f"/{service}/"
        self._gate = gate
        self._metrics = metrics

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Replaces the method's handler by one that is surrounded."""
        handler = await continuation(handler_call_details)
        path: str = handler_call_details.method
        if handler is None or not path.startswith(self._prefix):
            return handler
        method = path.removeprefix(self._prefix)

        async def surrounded(message: bytes, context: Any) -> bytes:
            return await self._surround(method, handler, message, context)

        return grpc.unary_unary_rpc_method_handler(surrounded)

    async def _surround(self, method: str, handler: Any, message: bytes, context: Any) -> bytes:
        call = Call(method)
        current_call.set(call)
        self._metrics.in_flight.inc()
        try:
            self._gate.enter(context)
            request = _parse(handler.request_deserializer, message)
            response: bytes = handler.response_serializer(await handler.unary_unary(request, context))
        except RequestError as error:
            call.status, call.detail = error.code, str(error)[:DETAIL_CHARACTERS]
            self._metrics.rejections.labels(error.reason).inc()
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            expired = remaining is not None and remaining < DEADLINE_SLACK_SECONDS
            call.status = "DEADLINE_EXCEEDED" if expired else "CANCELLED"
            if expired:
                self._metrics.rejections.labels(Reason.DEADLINE).inc()
            raise
        except Exception:
            call.status, call.detail = "INTERNAL", f"internal error; the server's log has it under {call.id}"
            log.exception("request=%s failed unexpectedly", call.id)
        finally:
            self._finish(call)
        context.set_trailing_metadata(((ID_HEADER, call.id),))
        if call.status != "OK":
            await context.abort(grpc.StatusCode[call.status], call.detail)
        return response

    def _finish(self, call: Call) -> None:
        seconds = time.monotonic() - call.started
        self._metrics.in_flight.dec()
        self._metrics.requests.labels(call.method, call.variant, call.status).inc()
        self._metrics.duration.labels(call.method, call.variant).observe(seconds)
        text = f" {call.detail}" if call.detail else ""
        log.info(
            "request=%s method=%s variant=%s code=%s seconds=%.4f%s",
            call.id, call.method, call.variant, call.status, seconds, text,
        )  # fmt: skip


def _parse(deserializer: Callable[[bytes], Any], message: bytes) -> Any:
    try:
        return deserializer(message)
    except DecodeError as error:
        raise InvalidArgumentError(Reason.MALFORMED, "the message is not of the method's request type") from error
