"""Draining: the end of connections when the server stops.

A gRPC server that stops answers CANCELLED to calls that arrived before their clients learned of it (grpc/grpc#41785),
and no client retries those. When the connection ends instead, the same calls fail as UNAVAILABLE and are retried
elsewhere. So each connection is closed for writing: what was written before arrives, then the end, and nothing else.
"""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

# gRPC does not expose its sockets, so they are looked up among the process's descriptors, which only Linux lists here.
DESCRIPTORS = Path("/proc/self/fd")
# States in Linux's tcp_info in which the peer has not received everything yet.
ESTABLISHED, FIN_WAIT1, CLOSING = 1, 4, 11
POLL_SECONDS = 0.01


async def close_connections(port: int, seconds: float) -> None:
    """Close the server's connections on `port`; return when clients have what was written, or after `seconds`."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(each) for each in _connections(port)]
        for each in connections:
            with contextlib.suppress(OSError):  # the client closed it first
                each.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(map(_delivered, connections)):  # noqa: ASYNC110 - the kernel has no event for it
                    await asyncio.sleep(POLL_SECONDS)


def _connections(port: int) -> list[socket.socket]:
    """Return duplicates of the sockets of connections to `port` of this process."""
    found = []
    for path in DESCRIPTORS.iterdir() if DESCRIPTORS.is_dir() else ():
        with contextlib.suppress(OSError):  # closed in the meantime
            if not stat.S_ISSOCK(path.stat().st_mode):
                continue
            copy = socket.socket(fileno=os.dup(int(path.name)))
            if _is_connection(copy, port):
                found.append(copy)
            else:
                copy.close()
    return found


def _is_connection(any_socket: socket.socket, port: int) -> bool:
    if any_socket.family not in (socket.AF_INET, socket.AF_INET6) or any_socket.type != socket.SOCK_STREAM:
        return False
    if any_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    return bool(any_socket.getsockname()[1] == port)


def _delivered(connection: socket.socket) -> bool:
    state = struct.unpack("B", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))[0]
    return state not in (ESTABLISHED, FIN_WAIT1, CLOSING)
