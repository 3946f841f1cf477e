"""How a client reaches several servers: addresses, and gRPC's settings for balancing, health checks and retries."""

import ipaddress
import json
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SERVICE = "speakerlens.v1.SpeakerIdentification"
# Calls that may run twice. A method is repeated only if it is named here, so that a new one is safe by default.
REPEATABLE = (
    "Identify",
    "IdentifyBatch",
    "Embed",
    "Verify",
    "Search",
    "SearchBatch",
    "ListSpeakers",
    "GetModel",
    "ListModels",
)
# gRPC-core makes at most this many attempts, whatever is asked.
MOST_ATTEMPTS = 5
SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|google-c2p):")
NUMERIC_LISTS = ("ipv4:", "ipv6:")
# A connection attempt ends after CONNECT_MS, and is repeated after RECONNECT_MS, later after at most CONNECT_MS. gRPC's
# own 20 s and 2 minutes would leave a server that came back without calls.
RECONNECT_MS, CONNECT_MS = 200, 5_000
# gRPC asks DNS every 30 s at most, in which time all pods of a Deployment may have been replaced.
RESOLVE_MS = 1_000
# A frozen server or a cut cable is noticed by a ping while calls wait. Servers allow one ping in 10 s.
PING_MS, PING_TIMEOUT_MS = 15_000, 5_000


@dataclass(frozen=True)
class Balancing:
    """How calls are spread over servers, and repeated on another one where a server is lost.

    Only calls that read are repeated, and only on UNAVAILABLE: never an enrolment, a removal, an import or a stream.
    """

    attempts: int = MOST_ATTEMPTS
    """Attempts of a call, 1 to 5; 1: no retry."""
    first_backoff: float = 0.05
    """Seconds before the second attempt, +/- 20 %; three times as long before each further one."""
    longest_backoff: float = 1.0
    """Most seconds between two attempts."""
    health_check: bool | None = None
    """Send calls only to servers whose health is SERVING; None: with several addresses and with `dns:`."""
    retry_bytes: int = 64 * 2**20
    """Largest call to repeat, in bytes."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of its range.
        """
        if not 1 <= self.attempts <= MOST_ATTEMPTS:
            raise ValueError(f"attempts: must be 1 to {MOST_ATTEMPTS}, not {self.attempts}")
        if not 0 < self.first_backoff <= self.longest_backoff < float("inf"):
            raise ValueError("first_backoff: must be above 0 and at most longest_backoff")
        if not 0 <= self.retry_bytes < 2**31:
            raise ValueError(f"retry_bytes: must be 0 to {2**31 - 1}, not {self.retry_bytes}")

    def options(self, several: bool) -> list[tuple[str, Any]]:
        """Return the channel's options; `several`: the target may be more than one server."""
        return [
            ("grpc.service_config", json.dumps(self.service_config(several))),
            ("grpc.per_rpc_retry_buffer_size", self.retry_bytes),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
            ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", CONNECT_MS),
            ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MS),
            ("grpc.keepalive_time_ms", PING_MS),
            ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ]

    def service_config(self, several: bool) -> dict[str, Any]:
        """Return gRPC's service config, as clients in other languages can use it."""
        config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
        if several if self.health_check is None else self.health_check:
            config["healthCheckConfig"] = {"serviceName": ""}
        if self.attempts > 1:
            policy = {
                "maxAttempts": self.attempts,
                "initialBackoff": f"{self.first_backoff:.9f}s",
                "maxBackoff": f"{self.longest_backoff:.9f}s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            }
            names = [{"service": SERVICE, "method": method} for method in REPEATABLE]
            config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
        return config


DEFAULT_BALANCING = Balancing()


@dataclass(frozen=True)
class Target:
    """The servers of one client.

    Attributes:
        servers: each address as it was given, HOST:PORT or a gRPC name such as dns:///HOST:PORT.
        several: whether calls may go to more than one server.
    """

    servers: tuple[str, ...]
    several: bool

    @classmethod
    def parse(cls, address: str | Sequence[str]) -> "Target":
        """Read one address, several with commas between them, or a sequence.

        Raises:
            ValueError: there is none, or a list holds something else than HOST:PORT.
        """
        if not isinstance(address, str) and not address:
            raise ValueError("address: none")
        text = address if isinstance(address, str) else ",".join(address)
        scheme = SCHEME.match(text)
        if scheme and f"{scheme[1]}:" in NUMERIC_LISTS:
            text = text[scheme.end() :].lstrip("/")
        elif scheme and "," not in text:
            return cls((text,), scheme[1] in ("dns", "xds"))
        servers = tuple(part.strip() for part in text.split(",")) if "," in text else (text,)
        if len(servers) > 1 and not all(servers):
            raise ValueError(f"address: a part of {text!r} is empty")
        if any(SCHEME.match(server) for server in servers):
            raise ValueError(f"address: a list holds HOST:PORT only, not {text}")
        return cls(servers, len(servers) > 1)

    @property
    def text(self) -> str:
        """Return the addresses as one text, for messages."""
        return ",".join(self.servers)

    def each(self) -> "Iterator[Target]":
        """Yield each server as a target of its own."""
        return (Target((server,), False) for server in self.servers)

    @property
    def hosts(self) -> set[str]:
        """Return the hosts without ports."""
        return {_split(server)[0] for server in self.servers}

    def name(self) -> str:
        """Return gRPC's name of the servers.

        The host names of a list are looked up here, once; one that is unknown is left out.

        Raises:
            OSError: no host name of the list is known.
            ValueError: an address of the list has no port.
        """
        if len(self.servers) == 1:
            return self.servers[0]
        found = list(dict.fromkeys(self._addresses()))
        if not any(":" in host for host, _ in found):
            return "ipv4:" + ",".join(f"{host}:{port}" for host, port in found)
        return "ipv6:" + ",".join(f"[{host if ':' in host else '::ffff:' + host}]:{port}" for host, port in found)

    def _addresses(self) -> Iterator[tuple[str, int]]:
        unknown: OSError | None = None
        known = False
        for server in self.servers:
            host, port = _split(server)
            try:
                results = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError as error:
                unknown = OSError(error.errno, error.strerror, server)
                continue
            known = True
            yield from ((str(address[0]), int(address[1])) for *_, address in results)
        if not known and unknown is not None:
            raise unknown


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT is on this machine for certain: a numeric loopback address, or localhost.

    Any other name may lead elsewhere, such as 127.example.org.
    """
    host, colon, port = address.removeprefix("dns:///").rpartition(":")
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


def _split(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise ValueError(f"address: {server} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)
