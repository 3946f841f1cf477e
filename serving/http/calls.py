"""Calls with one request and one answer, as ASGI applications."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import parse_qsl

import grpc
from google.protobuf.message import Message
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from speakerlens.serving.api.identification import SERVICE
from speakerlens.serving.context import CallContext, current_context
from speakerlens.serving.errors import InvalidArgumentError, Reason, RequestError, ResourceExhaustedError
from speakerlens.serving.http.context import (
    OTHER_TYPE,
    TOO_LARGE,
    TOO_SLOW,
    HttpContext,
    call_of,
    deadline_of,
    headers_of,
    problem,
    status_of,
)
from speakerlens.serving.http.messages import FORM, JSON, is_accepted, parse_body, parse_values, to_json
from speakerlens.serving.rpc.auth import Tokens, refusing
from speakerlens.serving.rpc.transfer import SLOWEST_SPEED

# A large answer is passed on in pieces, so that the connection's buffer holds one of them at most.
PIECE_BYTES = 64 * 1024
# Text of base64 for three bytes.
BASE64_CHARACTERS = 4


class Run(Protocol):
    """`CallInterceptor.run`."""

    async def __call__(
        self, service: str, call: CallContext, handler: Any, incoming: Any, context: Any, metadata: Any, /
    ) -> bytes | None:
        """Run one call."""


class Runner:
    """What all calls by HTTP share.

    Args:
        run: runs a call with all that surrounds it.
        tokens: the valid tokens; None: none is asked for.
        max_bytes: the largest request.
        seconds: time for an answer to be read, beside its time at the slowest speed.
    """

    def __init__(self, run: Run, tokens: Tokens | None, max_bytes: int, seconds: float) -> None:
        self.run = run
        self.max_bytes = max_bytes
        self._tokens = tokens
        self._seconds = seconds

    def authenticate(self, call: CallContext, authorization: list[str]) -> None:
        """Note the caller of a call.

        Raises:
            UnauthenticatedError: tokens are asked for, and it has none or more than one.
        """
        if self._tokens is not None:
            call.caller = self._tokens.caller(authorization[0] if len(authorization) == 1 else "")

    async def send(self, send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send an answer; the connection is closed where the client does not read it in time."""
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        pairs.append((b"content-length", str(len(body)).encode()))
        # An answer that is begun and not ended makes the server close the connection.
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds + len(body) / SLOWEST_SPEED):
                await send({"type": "http.response.start", "status": status, "headers": pairs})
                for start in range(0, len(body), PIECE_BYTES):
                    piece = body[start : start + PIECE_BYTES]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})


class SingleCall:
    """An ASGI application for one method.

    Args:
        runner: runs the call.
        method: name of the RPC.
        behaviour: of the servicer.
        kind: of the request.
    """

    def __init__(
        self, runner: Runner, method: str, behaviour: Callable[[Any, Any], Awaitable[Message]], kind: type[Message]
    ) -> None:
        self._runner = runner
        self._method = method
        self._behaviour = behaviour
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = Headers(scope=scope)
        call = call_of(self._method, headers)
        current_context.set(call)
        body = _Body(receive)
        context, handler = self._prepared(scope, call, headers)
        incoming = self._incoming(scope, headers, body, context)
        running = asyncio.create_task(self._runner.run(SERVICE, call, handler, incoming, context, headers.items()))
        try:
            awaited: set[asyncio.Future[Any]] = {running, body.gone}
            await asyncio.wait(awaited, timeout=context.time_remaining(), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                context.cancel()
                running.cancel()
                await asyncio.wait({running})
                if body.gone.done():
                    return
                context.detail, context.narrower = "the deadline has passed", None
            payload = None if running.cancelled() else running.result()
            await self._answer(send, call, context, payload)
        finally:
            running.cancel()
            body.close()
            context.finish()

    async def _answer(self, send: Send, call: CallContext, context: HttpContext, payload: bytes | None) -> None:
        status = status_of(call, context)
        headers = headers_of(call, status)
        if payload is None:
            headers["content-type"] = "application/problem+json"
            payload = json.dumps(problem(status, call.status, context.detail, call.id)).encode()
        else:
            headers["content-type"] = JSON
        await self._runner.send(send, status, headers, payload)

    def _prepared(self, scope: Scope, call: CallContext, headers: Headers) -> tuple[HttpContext, Any]:
        """Return the context and the handler of a call, which refuses where the headers are not right."""
        try:
            context = HttpContext(deadline_of(headers))
        except RequestError as error:
            return HttpContext(None), refusing(False, error)
        try:
            self._runner.authenticate(call, headers.getlist("authorization"))
        except RequestError as error:
            return context, refusing(False, error)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)

        def parse(body: bytes) -> Message:
            if scope["method"] in ("GET", "DELETE"):
                return parse_values(self._kind, {**dict(query), **scope["path_params"]})
            if query:
                raise InvalidArgumentError(Reason.MALFORMED, "the address has a query; send all fields in the body")
            return parse_body(self._kind, headers.get("content-type", ""), body)

        return context, grpc.unary_unary_rpc_method_handler(
            self._behaviour, request_deserializer=parse, response_serializer=to_json
        )

    async def _incoming(
        self, scope: Scope, headers: Headers, body: "_Body", context: HttpContext
    ) -> AsyncIterator[bytes]:
        """Yield the whole body."""
        if scope["method"] == "POST":
            content_type = headers.get("content-type", "")
            if not is_accepted(content_type):
                context.narrower = OTHER_TYPE
                raise InvalidArgumentError(Reason.MALFORMED, f"content-type: send {JSON} or {FORM}")
            if headers.get("content-encoding", "identity").strip().lower() != "identity":
                # A few KB would unpack to the largest request (docs/decisions/0048).
                context.narrower = OTHER_TYPE
                raise InvalidArgumentError(Reason.MALFORMED, "content-encoding: compressed bodies are not read")
            limit = self._runner.max_bytes
            if content_type.lower().startswith(JSON):
                limit = limit * BASE64_CHARACTERS // 3
        else:
            limit = 0
        context.narrower = TOO_SLOW
        try:
            content = await body.read(limit, headers.get("content-length", ""))
        except ResourceExhaustedError:
            context.narrower = TOO_LARGE
            raise
        context.narrower = None
        if content is not None:
            yield content


class _Body:
    """A request's body.

    Attributes:
        gone: done when the client has gone.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watching: asyncio.Task[None] | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def read(self, limit: int, stated: str) -> bytes | None:
        """Return the body; None where the client goes before its end.

        Args:
            limit: bytes.
            stated: the header `content-length`.

        Raises:
            ResourceExhaustedError: it is larger.
        """
        if stated.isdecimal() and int(stated[:20]) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                self._leave()
                return None
            chunks.append(event.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise _too_large(limit)
            more = event.get("more_body", False)
        self._watching = asyncio.create_task(self._watch())
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def close(self) -> None:
        """Stop looking for the end of the connection."""
        if self._watching is not None:
            self._watching.cancel()
        self.gone.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


def _too_large(limit: int) -> ResourceExhaustedError:
    return ResourceExhaustedError(Reason.REQUEST_SIZE, f"the body is larger than {limit} bytes (--max-message-bytes)")
