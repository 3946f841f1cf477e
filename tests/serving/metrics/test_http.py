"""The HTTP server of the metrics page: silent and slow connections do not keep others from it."""

import contextlib
import socket
import threading
import time
import urllib.request

import pytest

from speakerlens.serving.metrics import http
from speakerlens.serving.metrics.registry import Page


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        return str(page.read().decode())


def connect(stack: contextlib.ExitStack, port: int) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))


def ended(connection: socket.socket) -> bool:
    """Whether the server ends a connection without a word."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_silent_and_slow_connections_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.3)
    page = Page()
    page.gauge("here", "For the test.").set(1)
    port = page.serve("127.0.0.1", 0)
    with contextlib.ExitStack() as stack:
        silent, slow, half = (connect(stack, port) for _ in range(3))
        half.sendall(b"GET /metrics HTTP/1.0\r\n")
        with contextlib.suppress(OSError):
            for byte in b"GET /metrics HTTP/1.0 " * 9:
                slow.sendall(bytes([byte]))
                time.sleep(0.01)
        assert all(map(ended, (silent, slow, half)))
    assert "speakerlens_here 1.0" in scrape(port)
    assert capsys.readouterr().err == "", "no traceback"


def test_connections_beyond_the_limit_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(http, "REQUEST_SECONDS", 1.0)
    port = Page().serve("127.0.0.1", 0)
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        kept = [connect(stack, port) for _ in range(3)]
        assert all(ended(connect(stack, port)) for _ in range(20))
        assert threading.active_count() <= threads + 2 * 3
        assert all(map(ended, kept))
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError):
            assert scrape(port) == ""
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)
