"""TLS of the ports for calls: certificates that are reloaded when they change, and optional client certificates."""

import math
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grpc

from speakerlens.serving.config import Config
from speakerlens.serving.errors import StartupError
from speakerlens.serving.rpc.expiry import earliest_expiry
from speakerlens.serving.rpc.reload import ReloadingFile, warn_if_public


class _Certificates(NamedTuple):
    """gRPC's configuration of the files, and when the first certificate of the server's chain expires, since 1970."""

    configuration: grpc.ServerCertificateConfiguration
    expiry: float


def server_credentials(
    config: Config, watch_expiry: Callable[[Callable[[], float]], object]
) -> grpc.ServerCredentials | None:
    """Return credentials for the port, None where no certificate is configured.

    The files are checked before each handshake: a new certificate, key or client authority is used from the next
    connection on. While they are not valid, the previous ones stay in force.

    Args:
        config: names the files.
        watch_expiry: receives a function that returns when the certificate in force expires, in seconds since 1970.

    Raises:
        StartupError: a file cannot be read, or the files do not fit together.
    """
    if config.tls_certificate is None or config.tls_key is None:
        return None
    authority = config.tls_client_ca
    pair = _Pair(config.tls_certificate, config.tls_key, authority)
    try:
        warn_if_public("--tls-key", config.tls_key)
        watched = ReloadingFile("TLS files", pair.paths, pair.read)
    except (OSError, ValueError) as error:
        raise StartupError(str(error)) from error
    in_use = watched.value()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal in_use
        current = watched.value()
        if current is in_use:
            return None  # no change
        in_use = current
        return current.configuration

    watch_expiry(lambda: watched.value().expiry)
    return grpc.dynamic_ssl_server_credentials(
        in_use.configuration,
        renewed,  # type: ignore[arg-type]  # the stubs lack None
        require_client_authentication=authority is not None,
    )


def tls_context(config: Config) -> ssl.SSLContext | None:
    """Return a context for the HTTP port with the same files, None where no certificate is configured.

    The files are checked before each handshake, as for gRPC.

    Raises:
        StartupError: as for `server_credentials`.
    """
    if config.tls_certificate is None or config.tls_key is None:
        return None
    pair = _Pair(config.tls_certificate, config.tls_key, config.tls_client_ca)
    try:
        watched = ReloadingFile("TLS files of HTTP", pair.paths, pair.context)
    except (OSError, ValueError) as error:
        raise StartupError(str(error)) from error
    listening = watched.value()

    def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = watched.value()

    listening.sni_callback = renew  # OpenSSL calls it in every handshake, with or without a name
    return listening


class _Pair:
    """The files of a certificate, checked with OpenSSL: gRPC does not report what is wrong with them."""

    def __init__(self, certificate: Path, key: Path, authority: Path | None) -> None:
        self.certificate = certificate
        self.key = key
        self.authority = authority
        self.paths = (certificate, key) if authority is None else (certificate, key, authority)

    def read(self) -> _Certificates:
        """Return gRPC's configuration of the files, and the expiry.

        Raises:
            ValueError: a file cannot be read, is no PEM, or the key is not the certificate's.
        """
        certificate = _content("--tls-certificate", self.certificate)
        key = _content("--tls-key", self.key)
        self.context()
        authority = None if self.authority is None else _content("--tls-client-ca", self.authority)
        try:
            expiry = earliest_expiry(certificate)
        except ValueError:
            expiry = math.nan  # of an old kind of PEM that OpenSSL can read
        return _Certificates(grpc.ssl_server_certificate_configuration([(key, certificate)], authority), expiry)

    def context(self) -> ssl.SSLContext:
        """Return a context of OpenSSL with the files; errors as for `read`."""
        for flag, path in (("--tls-certificate", self.certificate), ("--tls-key", self.key)):
            _content(flag, path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            # Without a password, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:
            files = f"--tls-certificate {self.certificate} and --tls-key {self.key}"
            reason = getattr(error, "reason", None) or "not PEM, or an encrypted key"
            raise ValueError(f"{files} are not a pair: {reason.lower().replace('_', ' ')}") from error
        if self.authority is not None:
            _content("--tls-client-ca", self.authority)
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.authority)
            except OSError as error:
                raise ValueError(f"--tls-client-ca {self.authority}: no certificate in PEM") from error
        return context


def _content(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{flag} {path}: {error.strerror}") from error
