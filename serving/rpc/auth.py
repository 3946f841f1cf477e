"""Who may call: every method but health asks for a bearer token, where tokens are configured."""

from collections.abc import Callable
from typing import Any

import grpc

from speakerlens.serving.context import CallContext, current_context
from speakerlens.serving.errors import RequestError
from speakerlens.serving.rpc.interceptor import HANDLERS
from speakerlens.serving.rpc.tokens import Tokens

# A load balancer and an orchestrator have no token, and learn from it only whether the server is ready.
OPEN = "/grpc.health.v1.Health/"
AUTHORIZATION = "authorization"


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Stands inside `CallInterceptor`, which counts and words its refusals; other services' it words itself.

    A refused call's message is not looked at.

    Args:
        tokens: who may call.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Lets the call through to its handler, or gives it one that refuses."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN):
            return handler
        try:
            account = self._tokens.account(_authorization(handler_call_details.invocation_metadata))
            account.admit()
        except RequestError as error:
            # As if the request were streamed, which on the wire is the same: then it is not read.
            return HANDLERS[True, handler.response_streaming](*_refusing(handler.response_streaming, error))
        call = current_context.get(None)
        if call is not None:
            call.caller, call.charge = account.name, account.charge
        return handler


def _authorization(metadata: Any) -> str:
    """The one value of `authorization`; several are as good as none."""
    values = [value for key, value in metadata or () if key == AUTHORIZATION]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""


def _refusing(streaming: bool, error: RequestError) -> tuple[Any, Callable[[bytes], bytes], Callable[[Any], bytes]]:
    """A behaviour that raises `error`, and a reader and a writer that touch nothing."""

    async def refuse(_request: Any, context: Any) -> Any:
        await _word(context, error)

    async def refuse_stream(_request: Any, context: Any) -> Any:
        await _word(context, error)
        yield b""

    return (refuse_stream if streaming else refuse), bytes, bytes


async def _word(context: Any, error: RequestError) -> None:
    if current_context.get(None) is not None:
        raise error
    # Reflection, which CallInterceptor does not surround.
    context.set_trailing_metadata(CallContext("", "", retry_after_s=error.retry_after_s).trailing_metadata)
    await context.abort(grpc.StatusCode[error.code], str(error))
