"""The HTTP server of the metrics page: few connections at a time, each for a limited time."""

import contextlib
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

log = logging.getLogger(__name__)

# Connections at a time; more are closed at once. Each has a thread and a descriptor.
MAX_CONNECTIONS = 32
# For a whole request, from the connection to the last byte of the page.
REQUEST_SECONDS = 10.0


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


class _Handler(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""


def _end(request: socket.socket) -> None:
    """End a connection, whatever its thread waits for."""
    with contextlib.suppress(OSError):  # it has ended by itself
        request.shutdown(socket.SHUT_RDWR)
