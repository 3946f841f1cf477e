"""How connections are treated, and whether that is safe where the server listens."""

import ipaddress

from speakerlens.serving.config import Config

# A ping that is not answered within this time ends the connection.
KEEPALIVE_TIMEOUT_MS = 20_000
# Clients may ping this often; gRPC's default of 5 minutes ends connections of clients that keep theirs alive.
CLIENT_PING_MS = 10_000


def channel_arguments(config: Config) -> list[tuple[str, int]]:
    """Arguments of gRPC for limits and keepalive of the server's connections."""
    arguments = [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", config.max_streams),
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", CLIENT_PING_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if config.keepalive_seconds:
        arguments += [
            ("grpc.keepalive_time_ms", _milliseconds(config.keepalive_seconds)),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ]
    if config.connection_age_seconds:
        arguments.append(("grpc.max_connection_age_ms", _milliseconds(config.connection_age_seconds)))
        if config.connection_grace_seconds:
            arguments.append(("grpc.max_connection_age_grace_ms", _milliseconds(config.connection_grace_seconds)))
    return arguments


def exposure(config: Config) -> str | None:
    """What is unsafe about listening here, in one sentence; None on the loopback, or with TLS and known callers."""
    if _is_loopback(config.host):
        return None
    faults = []
    if config.tls_certificate is None:
        faults.append("without TLS, so that audio and tokens can be read on the way (--tls-certificate, --tls-key)")
    if config.tokens is None and config.tls_client_ca is None:
        faults.append("to everybody who reaches it (--tokens, or --tls-client-ca)")
    return f"gRPC listens on {config.host} {' and '.join(faults)}" if faults else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
