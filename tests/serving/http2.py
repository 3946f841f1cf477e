"""A client with just enough HTTP/2 to misbehave in ways that gRPC clients do not."""

import socket
import struct
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
END_STREAM, END_HEADERS = 1, 4


class Misbehaving:
    """One connection, with a stream for each call."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        # In one write: a server at its limit may close the connection before a second one.
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, b""))
        self._streams = -1

    def call(self, path: str) -> int:
        """Begin a call and return its stream's number."""
        self._streams += 2
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
        fields |= {"te": "trailers", "content-type": "application/grpc"}
        block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())
        self._send(HEADERS, END_HEADERS, self._streams, block)
        return self._streams

    def begin_message(self, stream: int, size: int, sent: int) -> None:
        """Announce a message of `size` bytes and send the first `sent` of them."""
        self._send(DATA, 0, stream, struct.pack(">BI", 0, size) + bytes(sent))

    def send(self, stream: int, data: bytes) -> None:
        """Send more of a message, at most one frame."""
        self._send(DATA, 0, stream, data)

    def ended(self, stream: int) -> bool:
        """Wait for the end of a call; return whether the server sent a status or a reset."""
        while head := self._socket.recv(9, socket.MSG_WAITALL):
            self._socket.recv(int.from_bytes(head[:3], "big"), socket.MSG_WAITALL)
            if int.from_bytes(head[5:], "big") == stream and head[3] in (HEADERS, RESET):
                return True
        return False

    def closed(self) -> bool:
        """Wait for the next frame that is not settings; return whether the server ended the connection."""
        try:
            while head := self._socket.recv(9, socket.MSG_WAITALL):
                size = int.from_bytes(head[:3], "big")
                self._socket.recv(size, socket.MSG_WAITALL)
                if head[3] not in (SETTINGS, WINDOW_UPDATE):
                    return head[3] == GOAWAY
        except ConnectionError:
            pass
        return True

    def _send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self._socket.sendall(_frame(kind, flags, stream, payload))

    def __enter__(self) -> "Misbehaving":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _text(text: str) -> bytes:
    """A string of up to 126 characters as HPACK has it, plain."""
    return bytes([len(text)]) + text.encode()
