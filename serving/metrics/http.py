"""The HTTP server of the pages of metrics and health: few connections at a time, each for a limited time."""

import asyncio
import contextlib
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

log = logging.getLogger(__name__)

# Connections at a time; more are closed at once. Each has a thread and a descriptor.
MAX_CONNECTIONS = 32
# For a whole request, from the connection to the last byte of the page.
REQUEST_SECONDS = 10.0

LIVE, READY = "/livez", "/readyz"
BEAT_SECONDS = 1.0
# The event loop's callbacks take milliseconds; one that lasts this long never ends.
HANGING_SECONDS = 30.0

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsServer(socketserver.ThreadingMixIn, WSGIServer):
    """Serves a WSGI application, each connection in a thread of its own.

    Args:
        host: address to bind.
        port: 0 is chosen by the system.
        application: the metrics page.

    Raises:
        OSError: the address cannot be bound.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, application: Callable[..., Any]) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((str(found[0][4][0]), port), _Handler)
        self.set_app(application)

    def start(self) -> None:
        """Accept connections in a thread."""
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, or close it where there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and end it when its time is over."""
        timer = threading.Timer(REQUEST_SECONDS, _end, [request])
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error of a connection; the base class would print it."""
        log.debug("a request for the metrics failed: %r", sys.exception())


class HealthPages:
    """WSGI application for what does not speak `grpc.health.v1`, or only without TLS, as Kubernetes.

    `/livez` is 200 while the event loop runs, `/readyz` while the server is SERVING; else 503. A server that loads or
    drains is live, and not ready.

    Args:
        ready: whether the server is SERVING; called in any thread.
        metrics: answers every other path.
    """

    def __init__(self, ready: Callable[[], bool], metrics: Application) -> None:
        self._ready = ready
        self._metrics = metrics
        self._beaten = time.monotonic()

    async def beat(self) -> None:
        """Note once a second that the event loop runs, until cancelled."""
        while True:
            self._beaten = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, as WSGI has it."""
        path = environ.get("PATH_INFO")
        if path not in (LIVE, READY):
            return self._metrics(environ, start_response)
        good = self._ready() if path == READY else time.monotonic() - self._beaten < HANGING_SECONDS
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        body = b"ok\n" if good else b"not serving\n" if path == READY else b"the event loop hangs\n"
        start_response(
            f"{status.value} {status.phrase}", [("Content-Type", "text/plain"), ("Cache-Control", "no-store")]
        )
        return [body]


class _Handler(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""


def _end(request: socket.socket) -> None:
    """End a connection, whatever its thread waits for."""
    with contextlib.suppress(OSError):  # it has ended by itself
        request.shutdown(socket.SHUT_RDWR)
