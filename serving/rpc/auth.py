"""Bearer tokens: where a file of them is configured, every method but health asks for one.

A line of the file is `NAME:TOKEN` or, so that the file holds no secret, `NAME:sha256=HEX`. Empty lines and lines that
begin with # are skipped.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from speakerlens.serving.context import current_context
from speakerlens.serving.errors import Reason, RequestError, StartupError, UnauthenticatedError
from speakerlens.serving.rpc.interceptor import HANDLERS
from speakerlens.serving.rpc.reload import ReloadingFile, warn_if_public

# Load balancers and orchestrators have no token; health tells them only whether the server is ready.
OPEN = "/grpc.health.v1.Health/"
AUTHORIZATION = "authorization"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
TOKEN = re.compile(r"[!-~]{16,512}")
HASHED = re.compile(r"sha256=([0-9a-f]{64})")
# The same for a missing and for a wrong token.
REFUSAL = "no valid bearer token; send the metadata authorization: Bearer TOKEN"


class Tokens:
    """The tokens of a file, which is reloaded when it changes.

    Args:
        path: the file.

    Raises:
        StartupError: the file cannot be read, or a line of it is not valid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            warn_if_public("--tokens", path)
            self._names = ReloadingFile("tokens", (path,), self._read)
        except OSError as error:
            raise StartupError(f"--tokens {path}: {error.strerror}") from error
        except ValueError as error:
            raise StartupError(str(error)) from error

    def reload(self) -> None:
        """Read the file again if it has changed."""
        self._names.value()

    def caller(self, authorization: str) -> str:
        """Return the name of the token in a value of the metadata `authorization`.

        Compares with every digest in constant time, so that the time taken reveals nothing about any of them.

        Raises:
            UnauthenticatedError: it holds no token of the file.
        """
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest()
        found = None
        for known, name in self._names.value().items():
            if hmac.compare_digest(known, digest):
                found = name
        if found is None or scheme.lower() != "bearer":
            raise UnauthenticatedError(Reason.UNAUTHENTICATED, REFUSAL)
        return found

    def _read(self) -> Mapping[bytes, str]:
        """Return the names of the tokens by digest."""
        names: dict[bytes, str] = {}
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                name, digest = _entry(line)
            except ValueError as error:
                raise ValueError(f"--tokens {self._path}, line {number}: {error}") from error
            if name in names.values() or digest in names:
                raise ValueError(f"--tokens {self._path}, line {number}: the name or the token is used before")
            names[digest] = name
        if not names:
            raise ValueError(f"--tokens {self._path}: no token in it")
        return names


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a valid token, before their messages are read.

    Stands inside `CallInterceptor`, which counts the refusals and sends their status.

    Args:
        tokens: the valid tokens.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the method's handler, or one that refuses."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN):
            return handler
        try:
            caller = self._tokens.caller(_authorization(handler_call_details.invocation_metadata))
        except UnauthenticatedError as error:
            return refusing(handler.response_streaming, error)
        call = current_context.get(None)
        if call is not None:
            call.caller = caller
        return handler


def _entry(line: str) -> tuple[str, bytes]:
    """Return a line's name and digest; errors never quote the line, which holds a secret."""
    name, colon, token = line.strip().partition(":")
    if not colon or not NAME.fullmatch(name):
        raise ValueError("write NAME:TOKEN or NAME:sha256=HEX, a name of letters, digits, dots, dashes and underscores")
    hashed = HASHED.fullmatch(token)
    if not hashed and (token.startswith("sha256=") or not TOKEN.fullmatch(token)):
        raise ValueError(f"the token of {name} is neither 16 to 512 printable characters nor sha256= and 64 hex digits")
    return name, bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(token.encode()).digest()


def _authorization(metadata: Any) -> str:
    """Return the value of `authorization`; nothing where it is missing or given more than once."""
    values = [value for key, value in metadata or () if key == AUTHORIZATION]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""


def refusing(streaming: bool, error: RequestError) -> Any:
    """Return a handler that fails with `error`."""

    async def refuse(_request: Any, context: Any) -> Any:
        if current_context.get(None) is not None:
            raise error  # CallInterceptor turns it into a status
        await context.abort(grpc.StatusCode[error.code], str(error))

    async def refuse_stream(request: Any, context: Any) -> Any:
        await refuse(request, context)
        yield b""

    # A streamed request looks the same on the wire, and is not read unless the handler asks for it.
    return HANDLERS[True, streaming](refuse_stream if streaming else refuse, bytes, bytes)
