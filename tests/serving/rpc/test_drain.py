"""The end of a server's port: nothing more is accepted, and what was written arrives."""

import asyncio
import socket
import sys

import grpc
import pytest

from speakerlens.serving.rpc.drain import close_port
from tests.serving.harness import CALL_SECONDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks sockets up in /proc")


async def test_connection_not_yet_accepted_is_reset() -> None:
    """gRPC accepts connections in a thread of its own, which may be late."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), CALL_SECONDS) as waiting:
            await close_port(port, 1.0)
            with pytest.raises(ConnectionResetError):
                waiting.recv(1)


async def test_closed_port_refuses_and_what_was_written_arrives() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), CALL_SECONDS) as client, listener.accept()[0] as accepted:
            accepted.sendall(b"the answer")
            closing = asyncio.create_task(close_port(port, 5.0))
            received = [await asyncio.to_thread(client.recv, 99) for _ in range(2)]
            assert received == [b"the answer", b""]
            await closing
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), CALL_SECONDS)


async def test_grpc_server_stops_quietly_without_its_port(capfd: pytest.CaptureFixture[str]) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await asyncio.wait_for(channel.channel_ready(), CALL_SECONDS)
        await close_port(port, 1.0)
        await server.stop(1.0)
        await asyncio.sleep(0.05)  # gRPC would log in its own thread
    assert capfd.readouterr().err == ""
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is free
