"""Health and reflection, which `serving.rpc.interceptor` leaves alone: malformed messages are INVALID_ARGUMENT.

gRPC itself would answer it with UNKNOWN and log a stack trace, for everybody who reaches the port.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from speakerlens.serving.errors import RequestError
from speakerlens.serving.rpc.interceptor import HANDLERS, MALFORMED, NO_MESSAGE
from speakerlens.serving.rpc.transfer import MessageTransfer


class BuiltinServicesInterceptor(grpc.aio.ServerInterceptor):
    """Receives and parses the messages of every service but those named.

    Args:
        services: full names of the services that are surrounded anyway.
        transfers: receives.
    """

    def __init__(self, services: Collection[str], transfers: MessageTransfer) -> None:
        self._services = frozenset(services)
        self._transfers = transfers

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Replaces the method's handler by one that receives and parses; as if the request were streamed."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.removeprefix("/").rpartition("/")[0]
        if handler is None or service in self._services:
            return handler
        parsing = _parsing(handler, self._transfers)
        return HANDLERS[True, handler.response_streaming](parsing, None, handler.response_serializer)


def _parsing(handler: Any, transfers: MessageTransfer) -> Callable[..., Any]:
    """The handler's behaviour with a parser before it; as it is, a coroutine or a generator."""
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    async def parsed(incoming: Any, context: Any) -> Any:
        messages = _each(handler.request_deserializer, transfers, aiter(incoming), context)
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


async def _each(
    parse: Callable[[bytes], Any], transfers: MessageTransfer, messages: AsyncIterator[bytes], context: Any
) -> AsyncIterator[Any]:
    try:
        while (message := await transfers.receive(messages)) is not None:
            yield parse(message)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)
    except RequestError as error:
        await context.abort(grpc.StatusCode[error.code], str(error))
