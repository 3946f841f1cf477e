"""What surrounds every call: one place that turns errors into statuses, counts, and writes the log line.

Nothing leaves as UNKNOWN or with a stack trace: what was not foreseen is INTERNAL with the request's id, under which
the log has the trace. Messages are parsed and serialised here too: a malformed one is a plain INVALID_ARGUMENT.
"""

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from concurrent.futures import Executor
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from speakerlens.serving.context import ID_HEADER, CallContext, current_context
from speakerlens.serving.errors import InvalidArgumentError, Reason, RequestError, UnavailableError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.rpc.budget import Reservation
from speakerlens.serving.rpc.transfer import MessageTransfer
from speakerlens.serving.rpc.wire import is_large, serialised

log = logging.getLogger(__name__)

# Details travel in a header, and clients accept 8 KiB of headers.
DETAIL_CHARACTERS = 2000
# A caller hangs up when its deadline passes, which by the server's count is a network's way too early.
DEADLINE_SLACK_SECONDS = 0.05
# An id that comes from outside goes into headers and log lines: printable ASCII without spaces, and not a novel.
FOREIGN_ID = re.compile(r"[!-~]{1,64}")

MALFORMED = "the message is not of the method's request type"
NO_MESSAGE = "the call has no message"

HANDLERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class CallGate:
    """Lets calls in and counts them, or says why not: `closed` is the reason, None is open."""

    def __init__(self) -> None:
        self.closed: str | None = "the server is starting"
        self._inside: set[Any] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, context: Any) -> None:
        """Lets a call in until it leaves, or is over: its answer, or a stream's last, has been handed to the network.

        Raises:
            UnavailableError: the gate is closed.
        """
        if self.closed is not None:
            raise UnavailableError(Reason.NOT_SERVING, f"{self.closed}; try again, or ask another replica")
        self._inside.add(context)
        self._empty.clear()
        context.add_done_callback(self.leave)

    def leave(self, context: Any) -> None:
        """Counts a call no more."""
        self._inside.discard(context)
        if not self._inside:
            self._empty.set()

    async def emptied(self, seconds: float) -> bool:
        """Waits until no call is inside; whether that came within `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)
        return self._empty.is_set()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Surrounds the calls, unary or streamed, of the services named; others (health, reflection) pass untouched.

    Handlers that stream answers are async generators; their requests arrive parsed, as an async iterator. To gRPC every
    request is streamed, which on the wire is the same: so it is not read before there is a gate it may pass, and has
    its limits. A single answer goes out with the status, in one step.

    Args:
        services: full names of the services.
        gate: every call that is answered goes through it.
        metrics: counts every call once.
        codec: threads that serialise large answers.
        transfers: receives and delivers.
        always: paths of the methods that are answered even while the gate is closed.
    """

    def __init__(
        self,
        services: Collection[str],
        gate: CallGate,
        metrics: Metrics,
        codec: Executor,
        transfers: MessageTransfer,
        always: Collection[str] = (),
    ) -> None:
        self._services = frozenset(services)
        self._always = frozenset(always)
        self._gate = gate
        self._metrics = metrics
        self._codec = codec
        self._transfers = transfers

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Replaces the method's handler by one that is surrounded."""
        service, _, method = handler_call_details.method.removeprefix("/").rpartition("/")
        if service not in self._services:
            return await continuation(handler_call_details)
        # For the interceptors further in as well; they and the handler run in the call's own task.
        call = CallContext(method, _request_id(handler_call_details.invocation_metadata))
        current_context.set(call)
        handler = await continuation(handler_call_details)
        # There is a handler for known methods only, which bounds the label `method`.
        if handler is None:
            return None

        gate = None if handler_call_details.method in self._always else self._gate

        async def surrounded(incoming: Any, context: Any) -> bytes | None:
            with self._transfers.held.share() as share:
                call.reserve_answer = share.reserve_answer
                return await self._surround(call, handler, gate, incoming, context, share)

        return HANDLERS[True, handler.response_streaming](surrounded)

    async def _surround(
        self, call: CallContext, handler: Any, gate: CallGate | None, incoming: Any, context: Any, share: Reservation
    ) -> bytes | None:
        self._metrics.in_flight.inc()
        payload = None
        try:
            if gate is not None:
                gate.enter(context)
            # gRPC's generator is part of a cycle: left alone, it keeps its message until garbage is next collected.
            async with contextlib.aclosing(aiter(incoming)) as messages:
                payload = await self._respond(handler, messages, context, share)
        except RequestError as error:
            call.status, call.detail = error_status(error)
            call.retry_after_s = error.retry_after_s
            self._metrics.rejections.labels(error.reason).inc()
        except asyncio.CancelledError:
            self._hung_up(call, context)
            raise
        except Exception as error:
            if context.cancelled():  # what fails then is the writing to a caller who has gone
                self._hung_up(call, context)
                raise asyncio.CancelledError from None
            call.status, call.detail = error_status(error)
        finally:
            self._finish(call)
        context.set_trailing_metadata(call.trailing_metadata)
        if call.status != "OK":
            await self._transfers.refuse(context, call.status, call.detail)
        return payload

    async def _respond(
        self, handler: Any, incoming: AsyncGenerator[bytes, None], context: Any, share: Reservation
    ) -> bytes | None:
        """Calls the handler, and delivers its answers, but for a single one, which gRPC sends with the status."""
        if handler.request_streaming:
            request = self._parsed(handler.request_deserializer, incoming, share)
            behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
        else:
            request = _parse(handler.request_deserializer, await self._one(incoming, share))
            behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if not handler.response_streaming:
            payload = await self._serialise(await behaviour(request, context))
            del request
            self._transfers.hand_over(context, payload, share, partial(self._gate.leave, context))
            return payload
        # A generator left to the garbage collector would go on holding what it holds after the call is over.
        async with contextlib.aclosing(behaviour(request, context)) as responses:
            first = True
            async for response in responses:
                await self._transfers.deliver(context, await self._serialise(response), share, first)
                first = False
        return None

    async def _one(self, incoming: AsyncGenerator[bytes, None], share: Reservation) -> bytes:
        message = await self._transfers.receive(incoming)
        await incoming.aclose()
        if message is None:
            raise InvalidArgumentError(Reason.MALFORMED, NO_MESSAGE)
        share.take(len(message))
        return message

    async def _parsed(
        self, deserializer: Callable[[bytes], Any], incoming: AsyncIterator[bytes], share: Reservation
    ) -> AsyncIterator[Any]:
        message = await self._transfers.receive(incoming)
        while message is not None:
            size, parsed, message = len(message), _parse(deserializer, message), None
            with share.part(size):
                yield parsed
            del parsed
            message = await anext(incoming, None)

    async def _serialise(self, message: Any) -> bytes:
        if not is_large(message):
            return serialised(message)
        return await asyncio.get_running_loop().run_in_executor(self._codec, serialised, message)

    def _hung_up(self, call: CallContext, context: Any) -> None:
        remaining = context.time_remaining()
        expired = remaining is not None and remaining < DEADLINE_SLACK_SECONDS
        call.status = "DEADLINE_EXCEEDED" if expired else "CANCELLED"
        if expired:
            self._metrics.rejections.labels(Reason.DEADLINE).inc()

    def _finish(self, call: CallContext) -> None:
        seconds = time.monotonic() - call.started
        self._metrics.in_flight.dec()
        self._metrics.requests.labels(call.method, call.variant, call.status).inc()
        self._metrics.page.observe(self._metrics.duration.labels(call.method, call.variant), seconds, call.id)
        text = f" {call.detail}" if call.detail else ""
        log.info(
            "method=%s variant=%s code=%s seconds=%.4f%s",
            call.method, call.variant, call.status, seconds, text,
            extra={
                "fields": {
                    "method": call.method, "variant": call.variant, "code": call.status, "seconds": round(seconds, 4)
                }
            },
        )  # fmt: skip


def error_status(error: Exception) -> tuple[str, str]:
    """Status and sentence that a caller is told of an error; one not foreseen goes to the log, under the call's id."""
    if isinstance(error, RequestError):
        return error.code, str(error)[:DETAIL_CHARACTERS]
    log.error("failed unexpectedly", exc_info=error)
    return "INTERNAL", f"internal error; the server's log has it under {current_context.get().id}"


def _request_id(metadata: Any) -> str:
    """Return the caller's own id if it is safe in a log line, else a new one."""
    for key, value in metadata or ():
        if key == ID_HEADER and isinstance(value, str) and FOREIGN_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex[:16]


def _parse(deserializer: Callable[[bytes], Any], message: bytes) -> Any:
    try:
        return deserializer(message)
    except DecodeError as error:
        raise InvalidArgumentError(Reason.MALFORMED, MALFORMED) from error
