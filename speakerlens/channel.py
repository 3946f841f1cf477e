"""What a channel to a server is made with, the same for the sync and the asyncio client."""

from collections.abc import Sequence

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 30.0

_LOOPBACK = ("127.", "localhost:", "[::1]:")


def options(address: str) -> Sequence[tuple[str, int]]:
    """Channel arguments for a server at `address` (HOST:PORT)."""
    chosen = [
        # Maps of a long recording exceed gRPC's 4 MiB; how much comes back is the caller's own choice.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    if is_loopback(address):
        # gRPC obeys `http_proxy` even for this machine's own servers, and no proxy can reach those.
        chosen.append(("grpc.enable_http_proxy", 0))
    return chosen


def is_loopback(address: str) -> bool:
    """Whether a server at `address` is one of this machine."""
    return address.startswith(_LOOPBACK)
