"""Addresses to listen on, limits and keepalive of connections, and a warning where they are open to everyone."""

import ipaddress
import logging
import resource
import socket

from speakerlens.serving.config import Config
from speakerlens.serving.errors import StartupError

log = logging.getLogger(__name__)

# Files that may be open beside the connections: libraries, the speakers' file, bundles while they are read, the
# connections of /metrics, gRPC's own.
OTHER_FILES = 256
# A connection that has not finished its handshake by then is closed; gRPC's default is two minutes.
HANDSHAKE_MS = 30_000

# Calls at once on one connection; more wait at the client. A client may open several connections.
MAX_STREAMS = 256
# A connection without traffic is pinged more often than usual balancers close idle ones (after 60 s and more), and ends
# when the ping is not answered in time.
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 20_000
# Clients may ping this often; gRPC's default of 5 minutes ends connections of clients that keep theirs alive.
CLIENT_PING_MS = 10_000
# A bit for each compression that messages may have: only the first, which is none. A few KB would unpack to the largest
# message, before any interceptor can refuse it; audio is compressed by its own formats.
NO_COMPRESSION = 0b1


def fitting_connections(wanted: int) -> int:
    """Return how many connections fit into the limit of open files, at most `wanted`, after raising the limit.

    Raises:
        StartupError: none fits.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted + OTHER_FILES:
        return wanted
    needed = wanted + OTHER_FILES
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError):  # not allowed here
        limit = soft
    if limit >= needed:
        return wanted
    fitting = limit - OTHER_FILES
    cure = "raise it (ulimit -n, systemd: LimitNOFILE)"
    if fitting < 1:
        raise StartupError(f"the limit of open files is {limit}, and the server needs more than {OTHER_FILES}; {cure}")
    log.warning(
        "--max-connections %d needs a limit of %d open files, and it is %d: at most %d connections are taken; %s",
        *(wanted, needed, limit, fitting, cure),
    )
    return fitting


def channel_arguments(config: Config, max_connections: int) -> list[tuple[str, int]]:
    """Return gRPC's arguments for limits and keepalive of the server's connections."""
    arguments = [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.compression_enabled_algorithms_bitset", NO_COMPRESSION),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", CLIENT_PING_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ]
    if config.connection_age_seconds:
        # Calls of such a connection may go on without limit: live streams last.
        arguments.append(("grpc.max_connection_age_ms", max(1, round(config.connection_age_seconds * 1000))))
    return arguments


def exposure(config: Config) -> str | None:
    """Return one sentence on what is unsafe about this address; None on the loopback, or with TLS and known callers."""
    if _is_loopback(config.host):
        return None
    faults = []
    if config.tls_certificate is None:
        faults.append("without TLS, so that audio and tokens can be read in transit (--tls-certificate, --tls-key)")
    if config.tokens is None and config.tls_client_ca is None:
        faults.append("for everyone who can reach it (--tokens, or --tls-client-ca)")
    return f"gRPC listens on {config.host} {' and '.join(faults)}" if faults else None


def check_address(host: str, port: int, flag: str) -> None:
    """Bind an address briefly: gRPC's own error does not say what is wrong with it.

    Raises:
        StartupError: the address cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise cannot_listen(flag, host, port, error) from error


def cannot_listen(flag: str, host: str, port: int, error: OSError) -> StartupError:
    """Return the error of a port that cannot be bound."""
    return StartupError(f"{flag} {port}: cannot listen on {address_of(host, port)}: {error.strerror}")


def address_of(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
