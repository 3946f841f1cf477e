"""A server with tokens, enrolled speakers, narrow limits and short windows, by HTTP."""

import base64
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx
import pytest
from google.protobuf import json_format

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving.harness import CALL_SECONDS, ServerProcess
from tests.serving.http.test_calls import as_json, flac, timeless
from tests.serving.http.test_live import START, chunks, ended, opened, sent
from tests.serving.rpc.test_tokens import ALICE, bearer, write

MAX_BYTES = 100_000
LIMITS = (
    f"--max-message-bytes={MAX_BYTES}",
    "--transfer-seconds=0.3",
    "--max-in-flight=2",
    "--window-seconds=1",
)


@dataclass(frozen=True)
class Guarded:
    server: ServerProcess
    client: httpx.Client


@pytest.fixture(scope="module")
def guarded(toy_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    flags = [f"--tokens={write(folder, f'a:{ALICE}')}", f"--speakers={folder / 'speakers.sqlite'}", *LIMITS]
    with (
        ServerProcess(toy_bundles, "--http-port=0", *flags, fresh=True) as server,
        httpx.Client(
            base_url=server.ready["http"],
            headers={"authorization": f"Bearer {ALICE}"},
            timeout=CALL_SECONDS,
            trust_env=False,
        ) as client,
    ):
        yield Guarded(server, client)


def protocols(token: str = ALICE) -> list[str]:
    return ["speakerlens", "bearer." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")]


@pytest.mark.parametrize("authorization", [None, "", ALICE, f"Basic {ALICE}", f"Bearer {ALICE}x"])
def test_no_token_gets_no_answer(guarded: Guarded, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    with httpx.Client(base_url=guarded.server.ready["http"], trust_env=False) as client:
        for path in ("/v1/models", "/models.json", "/examples/a.flac"):
            answer = client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHENTICATED")
            assert answer.headers["www-authenticate"] == "Bearer"
        huge = client.post("/v1/identify", content=b"x" * 10, headers={**headers, "content-type": "text/plain"})
        assert huge.status_code == 401, "the token comes before the body"
        for path in ("/", "/app.mjs", "/readyz", "/livez", "/openapi.json"):
            assert client.get(path).status_code == 200


def test_speakers_are_enrolled_searched_listed_and_removed(guarded: Guarded) -> None:
    client, name = guarded.client, "Ännchen/2"
    rest = {"speaker": name, "models": [{"variant": "da"}]}
    files = [("utterances", flac(1, seed=seed)) for seed in (1, 2)]
    enrolled = client.post("/v1/enroll", files=files, data={"request": json.dumps(rest)})
    assert enrolled.status_code == 200, enrolled.text
    assert enrolled.json()["speaker"]["models"][0]["exemplars"] == 2
    request = json.dumps({"model": {"variant": "da"}, "top_k": 1})
    found = client.post("/v1/search", files={"audio": flac(1, seed=1)}, data={"request": request}).json()
    assert found["answer"]["candidates"][0]["speaker"] == name
    assert [each["speaker"] for each in client.get("/v1/speakers?page_size=5").json()["speakers"]] == [name]
    assert client.delete(f"/v1/speakers/{name}").status_code == 200
    assert client.delete(f"/v1/speakers/{name}").status_code == 404
    assert client.get("/v1/speakers").json()["speakers"] == []


def test_bodies_above_the_limit_are_refused(guarded: Guarded) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    large = base64.b64encode(bytes(MAX_BYTES + 1)).decode()
    for answer in (
        guarded.client.post("/v1/identify", json={"audio": {"encoded": large}}),
        guarded.client.post("/v1/identify", files={"audio": bytes(MAX_BYTES)}),
        guarded.client.post("/v1/identify", content=endless(), headers={"content-type": "application/json"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (413, "RESOURCE_EXHAUSTED")
    assert guarded.server.metrics()['speakerlens_rejections_total{reason="request_size"}'] >= 3


def test_rest_of_a_refused_body_is_no_next_request(guarded: Guarded) -> None:
    """It is read for a while, and the connection answers the request after it."""
    place = urlsplit(guarded.server.ready["http"])
    address = (str(place.hostname), int(place.port or 0))
    with socket.create_connection(address) as connection, connection.makefile("rb") as answers:
        head = f"host: x\r\nauthorization: Bearer {ALICE}\r\ncontent-type: application/json\r\n"
        connection.sendall(f"POST /v1/identify HTTP/1.1\r\n{head}content-length: {4 * MAX_BYTES}\r\n\r\n".encode())
        assert one_answer(answers) == 413
        for _ in range(4):
            connection.sendall(b"x" * MAX_BYTES)
            time.sleep(0.05)
        connection.sendall(f"GET /v1/models HTTP/1.1\r\n{head}\r\n".encode())
        assert one_answer(answers) == 200


def one_answer(answers: BinaryIO) -> int:
    """Read one answer; return its status."""
    status = int(answers.readline().split()[1])
    headers = dict(line.lower().split(b": ", 1) for line in iter(answers.readline, b"\r\n"))
    answers.read(int(headers[b"content-length"]))
    return status


def test_a_body_that_does_not_arrive_is_refused(guarded: Guarded) -> None:
    place = urlsplit(guarded.server.ready["http"])
    with socket.create_connection((str(place.hostname), int(place.port or 0))) as connection:
        head = f"POST /v1/identify HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\n"
        connection.sendall(head.encode() + b"content-type: application/json\r\ncontent-length: 900\r\n\r\n{")
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
            part = connection.recv(4096)
            assert part, answer
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the request has not arrived within" in answer


def test_overload_says_when_to_come_again(guarded: Guarded) -> None:
    """A live stream takes one of the two places, and one request the other."""
    with opened(guarded.server, subprotocols=protocols()) as stream:
        assert stream.subprotocol == "speakerlens"
        stream.send(json.dumps({"start": START}))
        stream.send(bytes(2000))
        time.sleep(0.2)
        with opened(guarded.server, subprotocols=protocols()) as other:
            other.send(json.dumps({"start": START}))
            found, code = ended(other)
        assert code == 1013
        assert found[-1]["error"]["status"] == 429
        assert found[-1]["error"]["retry_after_s"] > 0
        content = flac(4)

        def ask(_: int) -> httpx.Response:
            return guarded.client.post("/v1/identify", files={"audio": content})

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(24)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert {answer.status_code for answer in answers} <= {200, 429}
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1


def test_a_wrong_token_gets_no_stream(guarded: Guarded) -> None:
    for offered in (
        ["speakerlens"],
        ["bearer.AAAA"],
        ["bearer.x"],
        [*protocols(), protocols()[1]],
        protocols("x" * 30),
    ):
        with opened(guarded.server, subprotocols=offered) as stream:
            found, code = ended(stream)
        assert code == 1008
        assert found[-1]["error"]["code"] == "UNAUTHENTICATED"


def test_a_stream_is_answered_as_by_grpc(guarded: Guarded) -> None:
    def requests() -> Iterator[pb.IdentifyStreamRequest]:
        yield pb.IdentifyStreamRequest(start=json_format.ParseDict(START, pb.StreamStart()))
        for chunk in chunks():
            yield pb.IdentifyStreamRequest(samples=chunk)

    answers = guarded.server.stub.IdentifyStream(requests(), metadata=bearer(ALICE), timeout=CALL_SECONDS)
    expected = [as_json(each) for each in answers]
    as_text = {"samples": base64.b64encode(chunks()[0]).decode()}
    with opened(guarded.server, subprotocols=protocols()) as connection:
        found, code = sent(connection, [{"start": START}, as_text, *chunks()[1:], {"end": True}])
    assert code == 1000
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert timeless(next(iter(one.values()))) == timeless(next(iter(other.values())))
    assert "whole" in found[-1]
