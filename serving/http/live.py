"""Live audio by WebSocket: a start as JSON, then samples; an answer for each window, and one for the whole.

Client to server: the text `{"start": {…}}`, then binary messages of samples (or texts with `samples`), then the text
`{"end": true}`. Server to client: texts of the stream's answers; a call that fails ends with a text `{"error": {…}}`.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from speakerlens.serving.api.identification import SERVICE
from speakerlens.serving.context import CallContext, current_context
from speakerlens.serving.errors import RequestError
from speakerlens.serving.http.calls import Runner
from speakerlens.serving.http.context import HttpContext, call_of, problem, status_of
from speakerlens.serving.http.messages import parse_json, to_json
from speakerlens.serving.rpc.auth import refusing

# A browser sends no header with a WebSocket, so that the token may be the name of a protocol.
PROTOCOL, TOKEN_PREFIX = "speakerlens", "bearer."
END = {"end": True}
# Codes of a closed connection (RFC 6455 and its registry).
NORMAL, POLICY, INTERNAL, AGAIN = 1000, 1008, 1011, 1013
CODES = {"OK": NORMAL, "INTERNAL": INTERNAL, "RESOURCE_EXHAUSTED": AGAIN, "UNAVAILABLE": AGAIN}


class StreamCall:
    """An ASGI application for one method with a stream of audio.

    Args:
        runner: runs the call.
        method: name of the RPC.
        behaviour: of the servicer.
        kind: of the requests.
    """

    def __init__(self, runner: Runner, method: str, behaviour: Callable[[Any, Any], Any], kind: type[Message]) -> None:
        self._runner = runner
        self._method = method
        self._behaviour = behaviour
        self._kind: Any = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a stream until its end."""
        headers = Headers(scope=scope)
        call = call_of(self._method, headers)
        current_context.set(call)
        await receive()
        protocols = scope.get("subprotocols", [])
        await send({"type": "websocket.accept", "subprotocol": PROTOCOL if PROTOCOL in protocols else None})

        async def write(payload: bytes) -> None:
            try:
                await send({"type": "websocket.send", "text": payload.decode()})
            except OSError:  # the client has gone
                context.cancel()
                raise

        context = HttpContext(None, write)
        messages = _Messages(receive)
        handler = self._handler(call, headers, protocols)
        running = asyncio.create_task(
            self._runner.run(SERVICE, call, handler, self._incoming(messages), context, headers.items())
        )
        try:
            awaited: set[asyncio.Future[Any]] = {running, messages.gone}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                await self._end(send, call, context)
        finally:
            context.cancel()
            running.cancel()
            await asyncio.wait({running})
            messages.close()
            context.finish()

    async def _end(self, send: Send, call: CallContext, context: HttpContext) -> None:
        if call.status != "OK":
            error = problem(status_of(call, context), call.status, context.detail, call.id)
            if call.retry_after_s is not None:
                error["retry_after_s"] = call.retry_after_s
            await send({"type": "websocket.send", "text": json.dumps({"error": error})})
        await send({"type": "websocket.close", "code": CODES.get(call.status, POLICY), "reason": call.status})

    def _handler(self, call: CallContext, headers: Headers, protocols: list[str]) -> Any:
        given = [*headers.getlist("authorization"), *(f"Bearer {each}" for each in map(_token, protocols) if each)]
        try:
            self._runner.authenticate(call, given)
        except RequestError as error:
            return refusing(True, error)
        return grpc.stream_stream_rpc_method_handler(
            self._behaviour, request_deserializer=self._kind.FromString, response_serializer=to_json
        )

    async def _incoming(self, messages: "_Messages") -> AsyncIterator[bytes]:
        """Yield the serialised requests of a stream."""
        while (event := await messages.next()) is not None:
            text = event.get("text")
            if text is None:
                yield self._kind(samples=event["bytes"]).SerializeToString()
            elif _is_end(text):
                return
            else:
                yield parse_json(self._kind, text).SerializeToString()


class _Messages:
    """The messages of a connection, read one ahead, so that its end is seen while an answer is computed.

    Attributes:
        gone: done when the client has gone.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._waiting: asyncio.Queue[Any] = asyncio.Queue(1)
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())

    async def next(self) -> Any:
        """Return the next message, None where the client sends no more."""
        return await self._waiting.get()

    def close(self) -> None:
        """Stop reading."""
        self._reading.cancel()
        self.gone.cancel()

    async def _read(self) -> None:
        while True:
            event = await self._receive()
            if event["type"] == "websocket.disconnect":
                if not self.gone.done():
                    self.gone.set_result(None)
                return
            await self._waiting.put(event)


def _is_end(text: str) -> bool:
    if len(text) > 64:
        return False
    try:
        return bool(json.loads(text) == END)
    except (ValueError, RecursionError):
        return False


def _token(protocol: str) -> str | None:
    """Return the token in the name of a protocol, as base64 for URLs; None for another protocol."""
    if not protocol.startswith(TOKEN_PREFIX):
        return None
    text = protocol.removeprefix(TOKEN_PREFIX)
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("latin-1")
    except (binascii.Error, ValueError):
        return ""
