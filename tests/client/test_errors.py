"""The exceptions of the clients: one class for each thing that a caller can do about an error."""

import asyncio
import socket
import threading

import grpc
import pytest

from speakerlens import (
    AsyncSpeakerClient,
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ServerFailureError,
    ServerUnavailableError,
    SpeakerClient,
)
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb

from .stand_in import StandIn

STATUSES = [
    (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError, "audio: 0.1 s is less than 0.5 s"),
    (grpc.StatusCode.NOT_FOUND, NotFoundError, "variant 'x' is not loaded; there is: clean"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError, "the queue of act-da is full"),
    (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceededError, "the deadline expired in the queue"),
    (grpc.StatusCode.UNAVAILABLE, ServerUnavailableError, "the server is draining"),
    (grpc.StatusCode.INTERNAL, ServerFailureError, "the engine failed"),
    (grpc.StatusCode.UNKNOWN, ServerFailureError, "what"),
]


@pytest.mark.parametrize(("status", "kind", "sentence"), STATUSES)
def test_status_becomes_its_exception_with_the_message(
    client: SpeakerClient, stand_in: StandIn, status: grpc.StatusCode, kind: type[ClientError], sentence: str
) -> None:
    stand_in.refuse = status, sentence
    with pytest.raises(ClientError, match=sentence) as caught:
        client.identify(b"audio")
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    with pytest.raises(kind):
        client.models()


@pytest.mark.parametrize(("status", "kind", "sentence"), STATUSES)
def test_async_client_raises_the_same(
    address: str, stand_in: StandIn, status: grpc.StatusCode, kind: type[ClientError], sentence: str
) -> None:
    async def run() -> None:
        async with AsyncSpeakerClient(address) as client:
            await client.identify(b"audio")

    stand_in.refuse = status, sentence
    with pytest.raises(ClientError, match=sentence) as caught:
        asyncio.run(run())
    assert type(caught.value) is kind


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_connection_refused_is_unavailable() -> None:
    address = f"127.0.0.1:{_free_port()}"
    with (
        SpeakerClient(address, timeout=10) as client,
        pytest.raises(ServerUnavailableError, match=f"^no server answers at {address}: .*Connection refused") as caught,
    ):
        client.is_serving()
    assert "ipv4" not in str(caught.value)


def test_unknown_host_is_unavailable() -> None:
    with (
        SpeakerClient("no-such-host.invalid:1", timeout=10) as client,
        pytest.raises(ServerUnavailableError, match=r"no-such-host\.invalid:1"),
    ):
        client.models()


def test_silent_server_exceeds_the_deadline() -> None:
    """A port that accepts connections and never answers, as behind a wrong port mapping."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with (
            SpeakerClient(address, timeout=60) as client,
            pytest.raises(DeadlineExceededError, match=f"^the server at {address} did not answer in time$"),
        ):
            client.identify(b"audio", timeout=0.3)


def test_http_server_is_unavailable() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            SpeakerClient(f"127.0.0.1:{listener.getsockname()[1]}", timeout=5) as client,
            pytest.raises(ServerUnavailableError),
        ):
            client.models()
        thread.join()


def test_request_above_the_message_limit_is_invalid(client: SpeakerClient) -> None:
    """The stand-in takes 4 MiB; gRPC itself refuses more with RESOURCE_EXHAUSTED."""
    with pytest.raises(InvalidRequestError, match=r"too large for the server.*larger than max"):
        client.identify(bytes(5 * 2**20))


def test_server_of_another_kind_is_named(client: SpeakerClient, stand_in: StandIn) -> None:
    stand_in.refuse = grpc.StatusCode.UNIMPLEMENTED, "Method not found!"
    with pytest.raises(ServerFailureError, match="is not a speakerlens server of this version: Method not found!"):
        client.models()


@pytest.mark.parametrize(
    ("plane", "sentence"),
    [
        (
            pb.Plane(stage=pb.STAGE_S2, rows=2, columns=2, values=bytes(12)),
            "s2 plane is declared as 2 x 2, .* 3 values",
        ),
        (pb.Plane(stage=pb.STAGE_S2, rows=1, columns=1, values=bytes(4)), "0 frequencies and 0 times"),
        (pb.Plane(stage=pb.STAGE_S2, values=bytes(5)), "5 bytes as float32"),
        (pb.Plane(stage=77), r"stage that this client does not know \(number 77\)"),  # type: ignore[arg-type]
    ],
)
def test_inconsistent_plane_is_a_server_failure(
    client: SpeakerClient, stand_in: StandIn, plane: pb.Plane, sentence: str
) -> None:
    answer = pb.ModelAnswer(variant="da", speakers=[pb.SpeakerScore(speaker="anna")])
    answer.explanation.saliency.append(plane)
    stand_in.reply = pb.IdentifyResponse(answers=[answer])
    with pytest.raises(ServerFailureError, match=sentence):
        client.identify(b"audio", explain=True)


def test_answer_without_speakers_is_a_server_failure(client: SpeakerClient, stand_in: StandIn) -> None:
    stand_in.reply = pb.IdentifyResponse(answers=[pb.ModelAnswer(variant="da", version=2)])
    with pytest.raises(ServerFailureError, match="answer of da@2 names no speaker"):
        client.identify(b"audio")
