"""Open the channel to a server: TLS, client certificates and bearer tokens, for blocking code and for asyncio."""

import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Tls:
    """TLS to a server; `Tls()` trusts the certificate authorities that come with gRPC."""

    ca: str | Path | None = None
    """PEM file of the certificate authorities to trust instead."""
    certificate: str | Path | None = None
    """PEM file of the client certificate, for servers that ask for one; needs `key`."""
    key: str | Path | None = None
    """PEM file of the certificate's private key, not encrypted."""
    server_name: str | None = None
    """Name in the server's certificate, if it is not the host of the address."""


def open_channel(address: str, tls: bool | Tls, token: str | None) -> grpc.Channel:
    """Open a channel for blocking code.

    Args:
        address: HOST:PORT.
        tls: True, or a `Tls`; False is plain text.
        token: bearer token to send with every call; None: no token.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file or the token is not valid, or the token would be sent in plain text over the network.
    """
    credentials, options = _credentials(address, tls, token)
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def open_async_channel(address: str, tls: bool | Tls, token: str | None) -> grpc.aio.Channel:
    """Open a channel for the running event loop; arguments and errors are those of `open_channel`."""
    credentials, options = _credentials(address, tls, token)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, credentials, options)


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT is on this machine for certain: a numeric loopback address, or localhost.

    Any other name may lead elsewhere, such as 127.example.org.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        return False
    if host.lower() == "localhost":
        return True
    try:
        if host.startswith("[") and host.endswith("]"):
            return ipaddress.IPv6Address(host[1:-1]).is_loopback
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def _credentials(
    address: str, tls: bool | Tls, token: str | None
) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
    """Return the channel's credentials (None: plain text) and its options."""
    # Maps of a long recording exceed gRPC's default of 4 MiB.
    options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    loopback = is_loopback(address)
    if loopback:
        # gRPC obeys `http_proxy` for loopback addresses too, which no proxy can reach.
        options.append(("grpc.enable_http_proxy", 0))
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise ValueError("token: empty, or not printable ASCII")
    if tls:
        chosen = Tls() if tls is True else tls
        if chosen.server_name:
            options.append(("grpc.ssl_target_name_override", chosen.server_name))
        credentials = _tls_credentials(chosen)
    elif token is None:
        return None, options
    elif loopback:
        # gRPC sends call credentials over plain text only on channels that it knows to be local.
        credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    else:
        raise ValueError(f"token: it would be sent to {address} in plain text; use TLS")
    if token is not None:
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    return credentials, options


def _tls_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Read the files, and check them with OpenSSL: gRPC reports a bad file late and without the reason."""
    if (tls.certificate is None) != (tls.key is None):
        raise ValueError("tls: a certificate and its key belong together")
    context = ssl.create_default_context()
    ca = chain = key = None
    if tls.ca is not None:
        ca = Path(tls.ca).read_bytes()
        _check(f"{tls.ca} holds no certificate in PEM", context.load_verify_locations, tls.ca)
    if tls.certificate is not None and tls.key is not None:
        chain, key = Path(tls.certificate).read_bytes(), Path(tls.key).read_bytes()
        message = f"{tls.certificate} and {tls.key} are not a certificate and its key in PEM"
        _check(message, context.load_cert_chain, tls.certificate, tls.key, "")
    return grpc.ssl_channel_credentials(ca, key, chain)


def _check(message: str, load: Callable[..., Any], *arguments: Any) -> None:
    try:
        load(*arguments)
    except ssl.SSLError as error:
        raise ValueError(f"tls: {message}") from error
