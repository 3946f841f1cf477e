"""The HTTP port: its connections, their limits, TLS, and how it is closed."""

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from speakerlens.serving.config import Config
from speakerlens.serving.rpc.channels import cannot_listen
from speakerlens.serving.rpc.tls import tls_context

# For the headers of a request; uvicorn itself has no limit.
HEADER_SECONDS: Final = 10.0
HEADER_BYTES: Final = 64 * 1024
# An idle connection is kept this long; longer than usual balancers take to use it again.
KEEP_ALIVE_SECONDS: Final = 65
# What a client still sends after it was refused is read this long, so that it sees why.
LINGER_SECONDS: Final = 2.0
BACKLOG: Final = 1024


class Connection(HttpToolsProtocol):
    """A connection: headers within limits of time and size, and as many connections as fit."""

    max_connections = 1024

    def connection_made(self, transport: Any) -> None:
        """Accept a connection, or close it where there are too many."""
        super().connection_made(transport)
        self._header_bytes = 0
        self._in_body = False
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of a connection that has ended."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass bytes to the parser, unless they are the headers of a request for too long."""
        if not self._in_body:
            if self._timer is None:
                self._expect_headers()
            self._header_bytes += len(data)
            # A body may begin in the same bytes.
            if self._header_bytes - len(data) > HEADER_BYTES:
                self.send_400_response("The headers are too long.")
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._stop_timer()
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body; after the answer, let the client send on for a short time only."""
        if self.cycle.response_complete and self._timer is None:
            self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._stop_timer()
        self._in_body = False
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to the WebSocket."""
        self._stop_timer()
        super().handle_websocket_upgrade()

    def _expect_headers(self) -> None:
        self._header_bytes = 0
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class HttpServer:
    """The port; construct it on the event loop.

    Args:
        application: answers the requests.
        config: address, limits and certificate.
        max_connections: open at a time.

    Raises:
        StartupError: the address cannot be bound, or a certificate is not valid.
    """

    def __init__(self, application: ASGIApp, config: Config, max_connections: int) -> None:
        assert config.http_port is not None
        context = tls_context(config)
        self._socket = _bound(config, config.http_port)
        self.secure = context is not None
        kind = type("LimitedConnection", (Connection,), {"max_connections": max_connections})
        settings = uvicorn.Config(
            application,
            http=kind,
            ws="websockets-sansio",
            ws_max_size=config.max_message_bytes,
            ws_per_message_deflate=False,  # a few KB would unpack to the largest message
            lifespan="off",
            log_config=None,
            log_level="error",  # what clients send wrongly is no line of the log
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            ssl_context_factory=None if context is None else lambda *_: context,
        )
        self._server = _Server(settings)
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Return the bound port."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Accept connections."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]))

    async def close(self, seconds: float) -> None:
        """Accept no more connections, and end those that there are, idle ones at once and others within `seconds`."""
        if self._serving is None:
            self._socket.close()
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(seconds))
        self._server.should_exit = True
        await asyncio.wait({self._serving}, timeout=seconds + 2)
        self._serving.cancel()


class _Server(uvicorn.Server):
    """A server that leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture nothing."""
        yield


def _bound(config: Config, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # The kernel ends a connection whose client takes nothing for this long.
            milliseconds = round(config.transfer_seconds * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise cannot_listen("--http-port", config.host, port, error) from error
    listener.setblocking(False)
    return listener
