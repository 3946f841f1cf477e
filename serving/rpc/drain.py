"""Draining: the end of the port and of its connections when the server stops.

A gRPC server that stops answers CANCELLED to calls that arrived before their clients learned of it (grpc/grpc#41785),
and no client retries those. When the connection ends instead, the same calls fail as UNAVAILABLE and are retried
elsewhere. So the port is closed first, that no further connection is accepted, and then each connection is closed for
writing: what was written before arrives, then the end, and nothing else. A connection is closed as soon as it has no
call in progress: its client, or a balancer, connects to another server instead of being refused here again.
"""

import asyncio
import contextlib
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

# gRPC does not expose its sockets, so they are looked up among the process's descriptors, which only Linux lists here.
DESCRIPTORS = Path("/proc/self/fd")
# States in Linux's tcp_info in which the peer has not received everything yet.
ESTABLISHED, FIN_WAIT1, CLOSING = 1, 4, 11
POLL_SECONDS = 0.01
# Between two searches for connections without calls.
IDLE_SECONDS = 0.02

# Address and port of a connection's client.
Peer = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


async def close_idle(port: int, busy: Callable[[], Iterable[str]], closed: set[Peer]) -> None:
    """Stop listening on `port`, and close each connection once it has no call in progress, until cancelled.

    Args:
        port: the server's.
        busy: returns the clients of the calls in progress, each as gRPC names it (`ipv4:127.0.0.1:1234`).
        closed: gets the client of each connection before that is closed: a call that arrives nevertheless must not
            run, as its answer would be lost.
    """
    _stop_listening(port)
    while True:
        await asyncio.sleep(IDLE_SECONDS)
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(each) for _, each in _sockets(port, listening=False)]
            peers = {peer: each for each in connections if (peer := _client(each)) is not None}
            calling = {peer_of(name) for name in busy()}
            # A client that is not found may be any of them.
            if not calling <= set(peers):
                continue
            for peer in set(peers) - calling - closed:
                closed.add(peer)
                with contextlib.suppress(OSError):
                    peers[peer].shutdown(socket.SHUT_WR)


async def close_port(port: int, seconds: float) -> None:
    """Close `port` and its connections; return when clients have what was written, or after `seconds`."""
    with contextlib.ExitStack() as stack:
        _stop_listening(port)
        connections = [stack.enter_context(each) for _, each in _sockets(port, listening=False)]
        for each in connections:
            with contextlib.suppress(OSError):  # the client closed it first
                each.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(map(_delivered, connections)):  # noqa: ASYNC110 - the kernel has no event for it
                    await asyncio.sleep(POLL_SECONDS)


def _client(connection: socket.socket) -> Peer | None:
    try:
        host, port = connection.getpeername()[:2]
    except OSError:  # the client closed it
        return None
    return _numeric(host), port


def peer_of(name: str) -> Peer | None:
    """Return the address in gRPC's name of a client; None for names of another form."""
    host, _, port = unquote(name).partition(":")[2].rpartition(":")
    try:
        return _numeric(host.strip("[]")), int(port)
    except ValueError:
        return None


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host.partition("%")[0])
    # The form of an IPv4 client's address on a socket for IPv4 and IPv6.
    return getattr(address, "ipv4_mapped", None) or address


def _stop_listening(port: int) -> None:
    """Put an idle socket in the place of each that listens on `port`; connections not yet accepted are reset.

    The kernel closes the socket that was replaced, without an event for gRPC, which would log an error.
    """
    for descriptor, listener in _sockets(port, listening=True):
        listener.close()
        with socket.socket() as idle:
            os.dup2(idle.fileno(), descriptor, inheritable=False)


def _sockets(port: int, listening: bool) -> Iterator[tuple[int, socket.socket]]:
    """Yield descriptor and duplicate of this process's sockets that listen on `port`, or are connections to it."""
    for path in list(DESCRIPTORS.iterdir()) if DESCRIPTORS.is_dir() else ():
        with contextlib.suppress(OSError):  # closed in the meantime
            if not stat.S_ISSOCK(path.stat().st_mode):
                continue
            copy = socket.socket(fileno=os.dup(int(path.name)))
            if _is_of_port(copy, port) and copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == listening:
                yield int(path.name), copy
            else:
                copy.close()


def _is_of_port(any_socket: socket.socket, port: int) -> bool:
    if any_socket.family not in (socket.AF_INET, socket.AF_INET6) or any_socket.type != socket.SOCK_STREAM:
        return False
    return bool(any_socket.getsockname()[1] == port)


def _delivered(connection: socket.socket) -> bool:
    state = struct.unpack("B", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))[0]
    return state not in (ESTABLISHED, FIN_WAIT1, CLOSING)
