"""Live audio by WebSocket, beside the same stream by gRPC."""

import json
import socket
from collections.abc import Iterable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.serving.harness import CALL_SECONDS, ServerProcess, talk

START = {"format": "SAMPLE_FORMAT_INT16", "sample_rate": 16_000, "models": [{"variant": "da"}], "top_k": 2}


def address(server: ServerProcess, path: str = "v1/identify/live") -> str:
    return str(server.ready["http"].replace("http", "ws", 1)) + path


def opened(server: ServerProcess, path: str = "v1/identify/live", **options: Any) -> ClientConnection:
    connection: ClientConnection = connect(
        address(server, path), proxy=None, max_size=None, open_timeout=CALL_SECONDS, **options
    )
    return connection


def chunks(seconds: float = 2) -> list[bytes]:
    samples = (talk(seconds) * 32767).astype("<i2").tobytes()
    return [samples[start : start + 9_999] for start in range(0, len(samples), 9_999)]


def ended(connection: ClientConnection) -> tuple[list[Any], int]:
    """Everything until the end, and the code of the end."""
    found = []
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            found.append(json.loads(connection.recv(timeout=CALL_SECONDS)))
    assert closed.value.rcvd is not None
    return found, closed.value.rcvd.code


def sent(connection: ClientConnection, messages: Iterable[Any]) -> tuple[list[Any], int]:
    for each in messages:
        connection.send(each if isinstance(each, bytes | str) else json.dumps(each))
    return ended(connection)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([b"\0\0"], "start: missing"),
        (["{}"], "start: missing"),
        (["hello"], "not JSON"),
        ([{"start": {"rate": 1}}], "has no field 'rate'"),
        ([{"start": START}, {"start": START}], "start: sent twice"),
        ([{"start": {**START, "sample_rate": 1}}], "start.sample_rate"),
        ([{"start": START}, b"\0\0\0", {"end": True}], "ends within a frame"),
        ([{"end": True}], "start: missing"),
    ],
)
def test_a_stream_that_is_not_one_is_refused(toy_server: ServerProcess, messages: list[Any], said: str) -> None:
    with opened(toy_server) as connection:
        found, code = sent(connection, messages)
    assert code == 1008
    assert found[-1]["error"]["code"] == "INVALID_ARGUMENT"
    assert said in found[-1]["error"]["detail"]


def test_a_client_that_leaves_frees_its_place(toy_server: ServerProcess) -> None:
    name = 'speakerlens_requests_total{code="CANCELLED",method="IdentifyStream",variant="da"}'
    before = toy_server.metrics().get(name, 0)
    with opened(toy_server) as connection:
        connection.send(json.dumps({"start": START}))
        connection.send(chunks()[0])
        toy_server.wait_for_metric("speakerlens_requests_in_flight", 1)
        connection.socket.shutdown(socket.SHUT_RDWR)
    toy_server.wait_for_metric(name, before + 1)
    assert toy_server.metrics()["speakerlens_requests_in_flight"] == 0


def test_another_site_and_another_address_get_no_stream(toy_server: ServerProcess) -> None:
    others: list[dict[str, Any]] = [{"origin": "http://other.example"}, {"path": "v1/identify"}]
    for options in others:
        with pytest.raises(InvalidStatus) as refused:
            opened(toy_server, **options)
        assert refused.value.response.status_code == 403
