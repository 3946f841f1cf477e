"""Health and reflection, which `serving.transport.rpc` leaves alone: a malformed message is INVALID_ARGUMENT there too.

gRPC itself would answer it with UNKNOWN and log a stack trace, for everybody who reaches the port.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving.transport.rpc import HANDLERS, MALFORMED


class ForeignInterceptor(grpc.aio.ServerInterceptor):
    """Parses the messages of every service but those named.

    Args:
        services: full names of the services that are surrounded anyway.
    """

    def __init__(self, services: Collection[str]) -> None:
        self._services = frozenset(services)

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Replaces the method's handler by one that parses."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.removeprefix("/").rpartition("/")[0]
        if handler is None or service in self._services:
            return handler
        kind = handler.request_streaming, handler.response_streaming
        return HANDLERS[kind](_parsing(handler), None, handler.response_serializer)


def _parsing(handler: Any) -> Callable[..., Any]:
    """The handler's behaviour with a parser before it; as it is, a coroutine or a generator."""
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    parse = _one if not handler.request_streaming else _each

    async def call(incoming: Any, context: Any) -> Any:
        return await behaviour(await parse(handler.request_deserializer, incoming, context), context)

    async def generate(incoming: Any, context: Any) -> AsyncIterator[Any]:
        async for response in behaviour(await parse(handler.request_deserializer, incoming, context), context):
            yield response

    return generate if inspect.isasyncgenfunction(behaviour) else call


async def _one(parse: Callable[[bytes], Any], message: bytes, context: Any) -> Any:
    try:
        return parse(message)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)


async def _each(parse: Callable[[bytes], Any], messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
    async def parsed() -> AsyncIterator[Any]:
        async for message in messages:
            yield await _one(parse, message, context)

    return parsed()
