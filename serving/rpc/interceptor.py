"""Runs every call: turns errors into statuses, counts the call and writes its log line.

No status is UNKNOWN and none carries a stack trace: an unexpected error is INTERNAL with the request's id, and the log
has the trace under that id. Messages are parsed and serialised here, so that a malformed one is INVALID_ARGUMENT.
"""

import asyncio
import contextlib
import contextvars
import inspect
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from speakerlens.serving.context import ID_HEADER, CallContext, current_context
from speakerlens.serving.engine.admission import Admission
from speakerlens.serving.errors import InvalidArgumentError, Reason, RequestError, UnavailableError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.rpc.drain import Peer, peer_of
from speakerlens.serving.rpc.tracing import Tracing
from speakerlens.serving.rpc.transfer import MessageTransfer, Reservation

log = logging.getLogger(__name__)

# The message of a status travels in a header, and clients accept 8 KiB of headers.
DETAIL_CHARACTERS = 2000
# A client cancels when its deadline passes; on the server's clock that is earlier by the network's latency.
DEADLINE_SLACK_SECONDS = 0.05
# Calls that are refused for load are summed up in the log this often.
OVERLOAD_SECONDS = 1.0
# The largest message of health and reflection, which hold one name; health needs no token.
MAX_BUILTIN_BYTES = 8 * 1024
# A client's id goes into headers and log lines: printable ASCII without spaces, of bounded length.
CLIENT_ID = re.compile(r"[!-~]{1,64}")

# Methods that are admitted as a whole. The requests of a batch are admitted one by one, and wait for it.
ADMITTED = frozenset({"Identify", "Embed", "Verify", "Search", "ModelInfer"})

MALFORMED = "the message is not of the method's request type"
NO_MESSAGE = "the call has no message"

HANDLERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class CallGate:
    """Lets calls in and counts those in progress.

    Attributes:
        closed: why no call is let in, None while the gate is open.
        closed_peers: clients whose connections are being closed, and whose calls are not let in either.
    """

    def __init__(self) -> None:
        self.closed: str | None = "the server is starting"
        self.closed_peers: set[Peer] = set()
        self._inside: set[Any] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, context: Any) -> None:
        """Count a call until it leaves or ends, which is when its last answer was passed to the network.

        Raises:
            UnavailableError: the gate is closed, or the call's connection is.
        """
        if self.closed is not None:
            raise UnavailableError(Reason.NOT_SERVING, f"{self.closed}; retry, or use another replica")
        if self.closed_peers and peer_of(context.peer()) in self.closed_peers:
            raise UnavailableError(Reason.NOT_SERVING, "the server is about to stop; retry, or use another replica")
        self._inside.add(context)
        self._empty.clear()
        context.add_done_callback(self.leave)

    def leave(self, context: Any) -> None:
        """Stop counting a call."""
        self._inside.discard(context)
        if not self._inside:
            self._empty.set()

    def peers(self) -> set[str]:
        """Return the clients of the calls in progress, as gRPC names them; calls by other protocols name none."""
        return {context.peer() for context in self._inside} - {""}

    async def emptied(self, seconds: float) -> bool:
        """Wait until no call is inside; return whether that happened within `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)
        return self._empty.is_set()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Runs the calls, unary or streamed, of the given services; others (health, reflection) pass unchanged.

    Handlers that stream answers are async generators; their requests arrive parsed, as an async iterator. To gRPC
    every request is streamed, which is the same on the wire: so a request is read only after the gate let the call
    in, and within its limits. A single answer is sent together with the status.

    Args:
        services: full names of the services.
        gate: lets calls in, and counts those in progress.
        admission: refuses calls that would be too late, before their messages are read.
        metrics: counts every call once.
        transfers: receives requests and delivers answers.
        always: paths of the methods that are answered even while the gate is closed.
        tracing: makes a span of every call, None for no spans.
    """

    def __init__(
        self,
        services: Collection[str],
        gate: CallGate,
        admission: Admission,
        metrics: Metrics,
        transfers: MessageTransfer,
        always: Collection[str] = (),
        tracing: Tracing | None = None,
    ) -> None:
        self._services = frozenset(services)
        self._always = frozenset(always)
        self._gate = gate
        self._admission = admission
        self._metrics = metrics
        self._transfers = transfers
        self._tracing = tracing
        self._overloaded = 0

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return a handler that runs the method's handler."""
        metadata = handler_call_details.invocation_metadata
        service, _, method = handler_call_details.method.removeprefix("/").rpartition("/")
        if service not in self._services:
            return await continuation(handler_call_details)
        # Inner interceptors and the handler run in the call's own task, and find it there.
        call = CallContext(method, _request_id(metadata))
        current_context.set(call)
        handler = await continuation(handler_call_details)
        # Only known methods have a handler, which bounds the label `method`.
        if handler is None:
            return None

        async def run(incoming: Any, context: Any) -> bytes | None:
            return await self.run(service, call, handler, incoming, context, metadata)

        return HANDLERS[True, handler.response_streaming](run)

    async def run(
        self, service: str, call: CallContext, handler: Any, incoming: Any, context: Any, metadata: Any
    ) -> bytes | None:
        """Run one call, whichever protocol it came by; its error, if any, becomes the status of `context`.

        Args:
            service: full name of the service.
            call: the call, which is the current context.
            handler: of the method, as gRPC builds them.
            incoming: the serialised requests, an async iterator.
            context: the part of gRPC's servicer context that calls use.
            metadata: of the call, for the parent of its span.

        Returns:
            The serialised answer; None where answers were streamed, or the call failed.
        """
        gate = None if f"/{service}/{call.method}" in self._always else self._gate
        end_span = self._tracing.begin(service, call, metadata) if self._tracing else None
        try:
            with self._transfers.budget.reservation() as reservation:
                call.reserve_answer = reservation.reserve_answer
                return await self._run(call, handler, gate, incoming, context, reservation)
        finally:
            if end_span is not None:
                end_span()

    async def _run(
        self,
        call: CallContext,
        handler: Any,
        gate: CallGate | None,
        incoming: Any,
        context: Any,
        reservation: Reservation,
    ) -> bytes | None:
        self._metrics.in_flight.inc()
        payload, message = None, ""
        try:
            if gate is not None:
                gate.enter(context)
            if call.method in ADMITTED:
                remaining = context.time_remaining()
                self._admission.check(None if remaining is None else time.monotonic() + remaining)
            # gRPC's generator is part of a reference cycle, and would keep its message until the next collection.
            async with contextlib.aclosing(aiter(incoming)) as messages:
                payload = await self._respond(handler, messages, context, reservation)
        except RequestError as error:
            call.status, message = error_status(error)
            call.detail = error.logged[:DETAIL_CHARACTERS]
            call.retry_after_s = error.retry_after_s
            self._metrics.rejections.labels(error.reason).inc()
        except asyncio.CancelledError:
            self._record_cancellation(call, context)
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status
            if context.cancelled():  # writing to a client that has cancelled fails
                self._record_cancellation(call, context)
                raise asyncio.CancelledError from None
            call.status, message = error_status(error)
            call.detail = message
        finally:
            self._record(call)
        context.set_trailing_metadata(call.trailing_metadata)
        if call.status != "OK":
            await self._transfers.refuse(context, call.status, message)
        return payload

    async def _respond(
        self, handler: Any, incoming: AsyncGenerator[bytes, None], context: Any, reservation: Reservation
    ) -> bytes | None:
        """Run the handler; deliver streamed answers, return a single one, which gRPC sends with the status."""
        if handler.request_streaming:
            request = self._requests(handler.request_deserializer, incoming, reservation)
            behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
        else:
            request = _parse(handler.request_deserializer, await self._request(incoming, reservation))
            behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if not handler.response_streaming:
            # On the event loop: protobuf holds the interpreter's lock in any thread (85 ms for 34 MB).
            payload: bytes = handler.response_serializer(await behaviour(request, context))
            del request
            self._transfers.hand_over(context, payload, reservation, partial(self._gate.leave, context))
            return payload
        # Close the generator with the call: the garbage collector would do it later.
        async with contextlib.aclosing(behaviour(request, context)) as responses:
            first = True
            async for response in responses:
                await self._transfers.deliver(context, handler.response_serializer(response), reservation, first)
                first = False
        return None

    async def _request(self, incoming: AsyncGenerator[bytes, None], reservation: Reservation) -> bytes:
        message = await self._transfers.receive(incoming)
        await incoming.aclose()
        if message is None:
            raise InvalidArgumentError(Reason.MALFORMED, NO_MESSAGE)
        reservation.take(len(message))
        return message

    async def _requests(
        self, deserializer: Callable[[bytes], Any], incoming: AsyncIterator[bytes], reservation: Reservation
    ) -> AsyncIterator[Any]:
        message = await self._transfers.receive(incoming)
        while message is not None:
            size, parsed, message = len(message), _parse(deserializer, message), None
            with reservation.part(size):
                yield parsed
            del parsed
            message = await anext(incoming, None)

    def _record_cancellation(self, call: CallContext, context: Any) -> None:
        remaining = context.time_remaining()
        expired = remaining is not None and remaining < DEADLINE_SLACK_SECONDS
        call.status = "DEADLINE_EXCEEDED" if expired else "CANCELLED"
        if expired:
            self._metrics.rejections.labels(Reason.DEADLINE).inc()

    def _record(self, call: CallContext) -> None:
        seconds = time.monotonic() - call.started
        self._metrics.in_flight.dec()
        self._metrics.requests.labels(call.method, call.variant, call.status).inc()
        self._metrics.page.observe(self._metrics.duration.labels(call.method, call.variant), seconds, call.id)
        if call.retry_after_s is not None:
            self._note_overload()
        level = logging.INFO if call.retry_after_s is None else logging.DEBUG
        if not log.isEnabledFor(level):
            return
        text = f" {call.detail}" if call.detail else ""
        fields = {"method": call.method, "variant": call.variant, "code": call.status, "seconds": round(seconds, 4)}
        log.log(
            level,
            "method=%s variant=%s code=%s seconds=%.4f%s",
            *(call.method, call.variant, call.status, seconds, text),
            extra={"fields": fields},
        )

    def _note_overload(self) -> None:
        """Count a call that was refused for load; one line of the log sums up those of OVERLOAD_SECONDS."""
        if not self._overloaded:
            asyncio.get_running_loop().call_later(OVERLOAD_SECONDS, self._log_overload, context=contextvars.Context())
        self._overloaded += 1

    def _log_overload(self) -> None:
        log.info("overload: %d calls were refused in %g s, to be tried again later", self._overloaded, OVERLOAD_SECONDS)
        self._overloaded = 0


class BuiltinServicesInterceptor(grpc.aio.ServerInterceptor):
    """Receives and parses the messages of health and reflection: of every service but the given ones.

    A malformed message is INVALID_ARGUMENT; gRPC by itself would answer UNKNOWN and log a stack trace. One above
    `MAX_BUILTIN_BYTES` is RESOURCE_EXHAUSTED.

    Args:
        services: full names of the services that `CallInterceptor` runs.
        transfers: receives the messages.
    """

    def __init__(self, services: Collection[str], transfers: MessageTransfer) -> None:
        self._services = frozenset(services)
        self._transfers = transfers

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return a handler that receives and parses, then runs the method's handler."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.removeprefix("/").rpartition("/")[0]
        if handler is None or service in self._services:
            return handler
        parsing = _parsing(handler, self._transfers)
        return HANDLERS[True, handler.response_streaming](parsing, None, handler.response_serializer)


def _parsing(handler: Any, transfers: MessageTransfer) -> Callable[..., Any]:
    """Return the handler's behaviour with a parser before it, a coroutine or a generator like itself."""
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    async def parsed(incoming: Any, context: Any) -> Any:
        messages = _messages(handler.request_deserializer, transfers, aiter(incoming), context)
        if handler.request_streaming:
            return messages
        async for message in messages:
            return message
        return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, NO_MESSAGE)

    async def call(incoming: Any, context: Any) -> Any:
        return await behaviour(await parsed(incoming, context), context)

    async def generate(incoming: Any, context: Any) -> AsyncIterator[Any]:
        async for response in behaviour(await parsed(incoming, context), context):
            yield response

    return generate if inspect.isasyncgenfunction(behaviour) else call


async def _messages(
    parse: Callable[[bytes], Any], transfers: MessageTransfer, messages: AsyncIterator[bytes], context: Any
) -> AsyncIterator[Any]:
    try:
        while (message := await transfers.receive(messages)) is not None:
            if len(message) > MAX_BUILTIN_BYTES:
                text = f"a message of this service has at most {MAX_BUILTIN_BYTES} bytes"
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            yield parse(message)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)
    except RequestError as error:
        await context.abort(grpc.StatusCode[error.code], str(error))


def error_status(error: Exception) -> tuple[str, str]:
    """Return the name and the message of an error's status; log an unexpected error under the call's id."""
    if isinstance(error, RequestError):
        return error.code, str(error)[:DETAIL_CHARACTERS]
    log.error("failed unexpectedly", exc_info=error)
    return "INTERNAL", f"internal error; the server's log has it under {current_context.get().id}"


def _request_id(metadata: Any) -> str:
    """Return the client's own id if it is safe in a log line, else a new one."""
    for key, value in metadata or ():
        if key == ID_HEADER and isinstance(value, str) and CLIENT_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)


def _parse(deserializer: Callable[[bytes], Any], message: bytes) -> Any:
    try:
        return deserializer(message)
    except DecodeError as error:
        raise InvalidArgumentError(Reason.MALFORMED, MALFORMED) from error
