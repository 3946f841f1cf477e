"""Open the channel to the servers: TLS, client certificates and bearer tokens, for blocking code and for asyncio."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from speakerlens.balancing import Balancing, Target, is_loopback

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


def open_channel(target: Target, tls: bool | Tls, token: str | None, balancing: Balancing | None) -> grpc.Channel:
    """Open a channel for blocking code.

    Args:
        target: the servers.
        tls: True, or a `Tls`; False is plain text.
        token: bearer token to send with every call; None: no token.
        balancing: how calls are spread and repeated; None: gRPC's defaults.

    Raises:
        OSError: a file cannot be read, or no host name of a list is known.
        ValueError: an address, a file or the token is not valid, or the token would be sent in plain text over the
            network.
    """
    credentials = _credentials(target, tls, token)
    options = _options(target, tls, balancing)
    if credentials is None:
        return grpc.insecure_channel(target.name(), options)
    return grpc.secure_channel(target.name(), credentials, options)


def open_async_channel(
    target: Target, tls: bool | Tls, token: str | None, balancing: Balancing | None
) -> grpc.aio.Channel:
    """Open a channel for the running event loop; arguments and errors are those of `open_channel`."""
    credentials = _credentials(target, tls, token)
    options = _options(target, tls, balancing)
    if credentials is None:
        return grpc.aio.insecure_channel(target.name(), options)
    return grpc.aio.secure_channel(target.name(), credentials, options)


def _options(target: Target, tls: bool | Tls, balancing: Balancing | None) -> list[tuple[str, Any]]:
    """Return the options of a channel to these servers."""
    # Maps of a long recording exceed gRPC's default of 4 MiB.
    options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if all(map(is_loopback, target.servers)):
        # gRPC obeys `http_proxy` for loopback addresses too, which no proxy can reach.
        options.append(("grpc.enable_http_proxy", 0))
    if balancing is not None:
        options += balancing.options(target.several)
    name = tls.server_name if isinstance(tls, Tls) else None
    if len(target.servers) > 1:
        # Else the list itself would be the name of the host that calls are for.
        options.append(("grpc.default_authority", target.servers[0]))
        if tls and name is None:
            if len(target.hosts) > 1:
                raise ValueError(
                    "tls: servers of several names need Tls.server_name, a name in all of their certificates"
                )
            (name,) = target.hosts
    if name:
        options.append(("grpc.ssl_target_name_override", name))
    return options


def _credentials(target: Target, tls: bool | Tls, token: str | None) -> grpc.ChannelCredentials | None:
    """Return the channel's credentials; None: plain text."""
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise ValueError("token: empty, or not printable ASCII")
    if tls:
        credentials = _tls_credentials(Tls() if tls is True else tls)
    elif token is None:
        return None
    elif all(map(is_loopback, target.servers)):
        # gRPC sends call credentials over plain text only on channels that it knows to be local.
        credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    else:
        raise ValueError(f"token: it would be sent to {target.text} in plain text; use TLS")
    if token is not None:
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    return credentials


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
