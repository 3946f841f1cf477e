"""Ends connections so that a call that was never begun fails as UNAVAILABLE.

A gRPC server that stops answers CANCELLED to calls that arrived before their callers heard of it (grpc/grpc#41785), and
no client repeats those. If the connection ends instead, the same calls fail as UNAVAILABLE, and are repeated elsewhere.
So each connection is closed for writing: what was written before arrives, then the end, and nothing else.
"""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

# gRPC does not hand its sockets out, so they are found among the process's descriptors, which only Linux lists here.
DESCRIPTORS = Path("/proc/self/fd")
# States of a connection in Linux's tcp_info in which the other side does not have everything yet.
ESTABLISHED, FIN_WAIT1, CLOSING = 1, 4, 11
LOOK_SECONDS = 0.01


async def hang_up(port: int, seconds: float) -> None:
    """Closes the server's connections on `port`; returns when the callers have what was written, or after `seconds`."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(each) for each in _connections(port)]
        for each in connections:
            with contextlib.suppress(OSError):  # the caller was faster
                each.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(map(_delivered, connections)):
                    await asyncio.sleep(LOOK_SECONDS)


def _connections(port: int) -> list[socket.socket]:
    """Duplicates of the sockets that connect callers to `port` of this process."""
    found = []
    for path in DESCRIPTORS.iterdir() if DESCRIPTORS.is_dir() else ():
        with contextlib.suppress(OSError):  # closed meanwhile
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
