"""Methods of Triton's extensions that are not offered: each is refused with a sentence, whatever its messages are."""

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from speakerlens.serving.errors import Reason, UnimplementedError

SHARED_MEMORY: Final = "there is no shared memory here; send the values in the request"
LOADING: Final = "models are loaded from the server's bundle folder, not by clients; RepositoryIndex lists them"
SETTINGS: Final = "it is set where the server is configured"
REFUSED: Final = {
    "ModelStreamInfer": "every request has one answer; send it with ModelInfer",
    "RepositoryModelLoad": LOADING,
    "RepositoryModelUnload": LOADING,
    "SystemSharedMemoryStatus": SHARED_MEMORY,
    "SystemSharedMemoryRegister": SHARED_MEMORY,
    "SystemSharedMemoryUnregister": SHARED_MEMORY,
    "CudaSharedMemoryStatus": SHARED_MEMORY,
    "CudaSharedMemoryRegister": SHARED_MEMORY,
    "CudaSharedMemoryUnregister": SHARED_MEMORY,
    "TraceSetting": SETTINGS,
    "LogSettings": SETTINGS,
}


class Refused(grpc.GenericRpcHandler):
    """Handlers of the methods that a service does not offer; they read no message.

    Args:
        service: full name of the service.
    """

    def __init__(self, service: str) -> None:
        self._handlers = {f"/{service}/{method}": _refusing(method, why) for method, why in REFUSED.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method that is refused, None for any other."""
        return self._handlers.get(handler_call_details.method)


def _refusing(method: str, why: str) -> Any:
    async def refuse(_requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        raise UnimplementedError(Reason.UNSUPPORTED, f"{method}: {why}")
        yield b""

    # As a stream of bytes either way, it serves unary calls too.
    return grpc.stream_stream_rpc_method_handler(refuse, bytes, bytes)
