"""The port: connections that do not send what they should, TLS, and pages."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from starlette.types import Receive, Scope, Send

from speakerlens.serving.config import Config
from speakerlens.serving.errors import StartupError
from speakerlens.serving.http import server as module
from speakerlens.serving.http.server import HttpServer
from tests.serving.certificates import issue, replace

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def serving(test: Callable[[int], Awaitable[None]], most: int = 10, **options: Any) -> None:
    server = HttpServer(application, Config(http_port=0, **options), most)
    server.start()
    try:
        await test(server.port)
    finally:
        await server.close(0)


async def answered(port: int, *parts: bytes, trust: ssl.SSLContext | None = None) -> bytes:
    """What comes until the server closes the connection, or for as long as a test waits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
    found = b""
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(5):
            while part := await reader.read(4096):
                found += part
                if found.endswith(b"ok"):
                    break
    except ConnectionError:
        pass
    finally:
        writer.close()
    return found


async def test_headers_that_do_not_come_close_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEADER_SECONDS", 0.05)

    async def test(port: int) -> None:
        assert await answered(port) == b""
        assert await answered(port, GET[:20]) == b""
        assert (await answered(port, GET)).endswith(b"ok")

    await serving(test)


async def test_headers_without_an_end_are_refused() -> None:
    async def test(port: int) -> None:
        long = b"GET / HTTP/1.1\r\n" + b"a: " + b"x" * 2**20
        assert b" 400 " in await answered(port, *(long[start : start + 2**15] for start in range(0, len(long), 2**15)))

    await serving(test)


async def test_a_body_after_the_answer_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.05)

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\nx")
        assert await reader.readuntil(b"ok")
        with pytest.raises((ConnectionError, TimeoutError)) as ended:
            async with asyncio.timeout(5):
                while True:
                    writer.write(b"x" * 1000)
                    await writer.drain()
                    await asyncio.sleep(0.01)
        assert ended.type is not TimeoutError
        writer.close()

    await serving(test)


async def test_more_connections_than_fit_are_closed() -> None:
    async def test(port: int) -> None:
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert await answered(port, GET) == b""
        for _, writer in kept:
            writer.close()
        await asyncio.sleep(0.05)
        assert (await answered(port, GET)).endswith(b"ok")

    await serving(test, most=2)


async def test_a_new_certificate_is_used_for_new_connections(tmp_path: Path) -> None:
    first, second = trustme.CA(), trustme.CA()
    pair = issue(tmp_path / "server", first)

    async def greets(port: int, authority: trustme.CA) -> bool:
        try:
            return (await answered(port, GET, trust=trusting(authority))).endswith(b"ok")
        except ssl.SSLError:
            return False

    async def test(port: int) -> None:
        assert await greets(port, first)
        assert not await greets(port, second)
        issue(tmp_path / "server", second)
        assert await greets(port, second)
        assert not await greets(port, first)
        replace(pair.certificate, b"nothing")
        assert await greets(port, second), "what is not valid changes nothing"

    await serving(test, tls_certificate=pair.certificate, tls_key=pair.key)


async def test_only_clients_with_a_certificate_are_accepted(tmp_path: Path) -> None:
    authority = trustme.CA()
    pair, own = issue(tmp_path / "server", authority), issue(tmp_path / "client", authority, "client")
    known = trusting(authority)
    known.load_cert_chain(own.certificate, own.key)

    async def test(port: int) -> None:
        assert (await answered(port, GET, trust=known)).endswith(b"ok")
        with pytest.raises((ssl.SSLError, AssertionError)):
            assert await answered(port, GET, trust=trusting(authority))

    await serving(test, tls_certificate=pair.certificate, tls_key=pair.key, tls_client_ca=pair.authority)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_port_in_use_is_named() -> None:
    async def test(port: int) -> None:
        with pytest.raises(
            StartupError, match=f"--http-port {port}: cannot listen on 127.0.0.1:{port}: Address already"
        ):
            HttpServer(application, Config(http_port=port), 1)

    await serving(test)
