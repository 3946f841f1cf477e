"""Receives and parses the messages of health and reflection, which `CallInterceptor` does not run.

A malformed message is INVALID_ARGUMENT; gRPC by itself would answer UNKNOWN and log a stack trace.
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
    """Receives and parses the messages of every service but the given ones.

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
            yield parse(message)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)
    except RequestError as error:
        await context.abort(grpc.StatusCode[error.code], str(error))
