"""How a client trusts a server, and shows who it is itself: TLS, client certificates, bearer tokens."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from speakerlens.channel import is_loopback, options

AUTHORIZATION = "authorization"


@dataclass(frozen=True)
class Tls:
    """TLS to a server; `Tls()` trusts the authorities that gRPC brings along."""

    ca: str | Path | None = None
    """Authorities to trust instead, PEM."""
    certificate: str | Path | None = None
    """What to show a server that asks for a certificate, PEM; needs `key`."""
    key: str | Path | None = None
    server_name: str | None = None
    """The name in the server's certificate, where it is not the host of the address."""


def sync_channel(address: str, tls: bool | Tls, token: str | None) -> grpc.Channel:
    """A channel for blocking code.

    Raises:
        OSError: a file cannot be read.
        ValueError: files make no sense, or the token would travel in the clear.
    """
    credentials, arguments = _prepared(address, tls, token)
    if credentials is None:
        channel = grpc.insecure_channel(address, arguments)
    else:
        channel = grpc.secure_channel(address, credentials, arguments)
    return channel if token is None else grpc.intercept_channel(channel, _Bearer(token))


def async_channel(address: str, tls: bool | Tls, token: str | None) -> grpc.aio.Channel:
    """A channel for asyncio; errors are those of `sync_channel`."""
    credentials, arguments = _prepared(address, tls, token)
    kinds = (_AsyncUnary, _AsyncAnswers, _AsyncRequests, _AsyncBoth)
    interceptors: Any = [] if token is None else [kind(token) for kind in kinds]
    if credentials is None:
        return grpc.aio.insecure_channel(address, arguments, interceptors=interceptors)
    return grpc.aio.secure_channel(address, credentials, arguments, interceptors=interceptors)


def _prepared(
    address: str, tls: bool | Tls, token: str | None
) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
    arguments: list[tuple[str, Any]] = list(options(address))
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise ValueError("token: empty, or not printable ASCII")
    if not tls:
        if token is not None and not is_loopback(address):
            raise ValueError(f"token: it would travel to {address} in the clear; use TLS")
        return None, arguments
    wanted = Tls() if tls is True else tls
    if wanted.server_name:
        arguments.append(("grpc.ssl_target_name_override", wanted.server_name))
    return _credentials(wanted), arguments


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    """The files, checked as OpenSSL sees them: gRPC's own refusal comes late and does not say what is wrong."""
    if (tls.certificate is None) != (tls.key is None):
        raise ValueError("tls: a certificate and its key belong together")
    context = ssl.create_default_context()
    ca = chain = key = None
    if tls.ca is not None:
        ca = Path(tls.ca).read_bytes()
        _checked(f"{tls.ca} holds no certificate in PEM", context.load_verify_locations, tls.ca)
    if tls.certificate is not None and tls.key is not None:
        chain, key = Path(tls.certificate).read_bytes(), Path(tls.key).read_bytes()
        fault = f"{tls.certificate} and {tls.key} are no certificate and its key in PEM"
        _checked(fault, context.load_cert_chain, tls.certificate, tls.key, "")
    return grpc.ssl_channel_credentials(ca, key, chain)


def _checked(fault: str, load: Callable[..., Any], *arguments: Any) -> None:
    try:
        load(*arguments)
    except ssl.SSLError as error:
        raise ValueError(f"tls: {fault}") from error


class _Token:
    """Adds the token to a call's metadata."""

    def __init__(self, token: str) -> None:
        self._value = f"Bearer {token}"

    def _with_token(self, details: Any, kind: Callable[..., Any]) -> Any:
        metadata = [*(details.metadata or ()), (AUTHORIZATION, self._value)]
        return kind(details.method, details.timeout, metadata, details.credentials, details.wait_for_ready)


class _Details(grpc.ClientCallDetails):
    """gRPC describes these but brings none."""

    def __init__(self, method: str, timeout: Any, metadata: Any, credentials: Any, wait_for_ready: Any) -> None:
        self.method = method
        self.timeout = timeout
        self.metadata = metadata
        self.credentials = credentials
        self.wait_for_ready = wait_for_ready
        self.compression = None


class _Bearer(
    _Token,
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def _intercept(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details, _Details), request)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._intercept(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._intercept(continuation, client_call_details, request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._intercept(continuation, client_call_details, request_iterator)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._intercept(continuation, client_call_details, request_iterator)


class _AsyncToken(_Token):
    async def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._with_token(details, _async_details), request)


# The asyncio channel takes an interceptor for one kind of call only.
class _AsyncUnary(_AsyncToken, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request)


class _AsyncAnswers(_AsyncToken, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request)


class _AsyncRequests(_AsyncToken, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request_iterator)


class _AsyncBoth(_AsyncToken, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request_iterator)


def _async_details(method: Any, timeout: Any, metadata: Any, credentials: Any, wait_for_ready: Any) -> Any:
    return grpc.aio.ClientCallDetails(method, timeout, grpc.aio.Metadata(*metadata), credentials, wait_for_ready)
