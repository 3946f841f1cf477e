"""JSON and forms: the same answers, refusals and metrics as by gRPC."""

import base64
import gzip
import io
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
import soundfile
from google.protobuf import json_format

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, talk
from tests.test_formats import written

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(toy_server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=toy_server.ready["http"], timeout=CALL_SECONDS, trust_env=False) as client:
        yield client


def flac(seconds: float = 1.2, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, talk(seconds, seed=seed), 16_000, format="FLAC")
    return buffer.getvalue()


def timeless(answer: dict[str, Any]) -> Any:
    """An answer without its timings, and with numbers as exact as they are in any batch."""
    assert answer.pop("timings").keys() == {"decode_s", "queue_s", "inference_s", "encode_s"}
    return rounded(answer)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def as_json(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def test_answers_are_those_of_grpc(toy_server: ServerProcess, client: httpx.Client) -> None:
    content = flac()
    explain = {"stages": ["STAGE_S4", "STAGE_FUSED"], "encoding": "ENCODING_UINT8"}
    fields = {"models": [{"variant": "da"}, {"variant": "clean", "version": 1}], "top_k": 2, "explain": explain}
    request = json_format.ParseDict(fields, pb.IdentifyRequest())
    request.audio.encoded = content
    expected = timeless(as_json(toy_server.identify(request)))
    with_text = {**fields, "audio": {"encoded": base64.b64encode(content).decode()}}
    by_json = client.post("/v1/identify", json=with_text)
    by_form = client.post("/v1/identify", files={"audio": content}, data={"request": json.dumps(fields)})
    for answer in (by_json, by_form):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert timeless(answer.json()) == expected
    assert expected["answers"][0]["explanation"]["saliency"][0]["stage"] == "STAGE_S4"


def test_two_files_of_a_form_are_compared(toy_server: ServerProcess, client: httpx.Client) -> None:
    one, other = flac(seed=1), flac(seed=2)
    request = pb.VerifyRequest(model=pb.ModelSelector(variant="da"))
    request.audio.encoded, request.other.encoded = one, other
    answer = client.post(
        "/v1/verify", files={"audio": one, "other": other}, data={"request": '{"model": {"variant": "da"}}'}
    )
    expected = as_json(toy_server.stub.Verify(request, timeout=CALL_SECONDS))
    assert timeless(answer.json()) == timeless(expected)


@pytest.mark.parametrize("name", ["opus in webm", "aac in mp4"])
def test_what_browsers_and_phones_record_is_read(client: httpx.Client, name: str) -> None:
    answer = client.post("/v1/identify", files={"audio": written(name)}, data={"request": '{"top_k": 1}'}).json()
    assert answer["audio"]["seconds"] == pytest.approx(2.0, abs=0.1)


def test_requests_of_a_batch_fail_one_by_one(client: httpx.Client) -> None:
    good = {"audio": {"encoded": base64.b64encode(flac()).decode()}, "top_k": 1}
    answer = client.post("/v1/identify-batch", json={"requests": [good, {"top_k": -1}]}).json()
    assert answer["results"][0]["response"]["answers"][0]["speakers"]
    assert answer["results"][1]["failure"]["code"] == "INVALID_ARGUMENT"


def test_models_and_limits_are_listed(toy_server: ServerProcess, client: httpx.Client) -> None:
    expected = as_json(toy_server.stub.ListModels(pb.ListModelsRequest(), timeout=CALL_SECONDS))
    assert client.get("/v1/models").json() == expected


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"audio": {"raw": {"samples": "AAAA", "format": "SAMPLE_FORMAT_FLOAT32", "sample_rate": 16000}}}, 400),
        ({"audio": {"encoded": "AAAA"}}, 400),
        ({"top_k": 3}, 400),
        ({"models": [{"variant": "nothing"}]}, 404),
        ({"models": [{"variant": "da", "version": 7}]}, 404),
        ({"explain": {"target_speaker": "nobody"}, "models": [{"variant": "da"}]}, 404),
    ],
)
def test_refusals_are_those_of_grpc(
    toy_server: ServerProcess, client: httpx.Client, fields: dict[str, Any], status: int
) -> None:
    samples = {} if "audio" in fields or "top_k" in fields else {"audio": as_json(raw(talk(1.2)))}
    request = json_format.ParseDict({**samples, **fields}, pb.IdentifyRequest())
    with pytest.raises(grpc.RpcError) as refused:
        toy_server.identify(request)
    answer = client.post("/v1/identify", json={**samples, **fields})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (found["code"], found["detail"]) == (refused.value.code().name, refused.value.details())
    assert found["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "audio: no source"),
        (b"[]", "must be a JSON object"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"top_k": 1e400}', "does not fit IdentifyRequest"),
        (b'{"top_k": "many"}', "does not fit IdentifyRequest"),
        (b'{"top_k": 99999999999}', "does not fit IdentifyRequest"),
        (b'{"topk": 1}', "has no field 'topk'"),
        (b'{"audio": {"encodedd": "AAAA"}}', "has no field 'encodedd'"),
        (b'{"audio": {"encoded": "data:audio/wav;base64,AAAA"}}', "audio.encoded: not base64; leave out"),
        (b'{"audio": {"encoded": "\xc3\xa4\xc3\xa4"}}', "audio.encoded: not base64"),
        (b'{"audio": {"encoded": 7}}', "does not fit IdentifyRequest"),
        (b'{"audio": 7}', "does not fit IdentifyRequest"),
        (b'{"models": {}}', "does not fit IdentifyRequest"),
        (b'{"priority": "PRIORITY_ALL"}', "does not fit IdentifyRequest"),
        (b'{"audio":' * 50 + b"1" + b"}" * 50, "nested too deeply"),
        (b"[" * 200_000, "not JSON"),
    ],
)
def test_malformed_json_is_refused(client: httpx.Client, body: bytes, said: str) -> None:
    answer = client.post("/v1/identify", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")
    assert said in answer.json()["detail"]
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("text/plain", b"{}", 415),
        ("application/x-www-form-urlencoded", b"audio=1", 415),
        ("audio/wav", b"RIFF", 415),
        ("", b"{}", 415),
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nA\r\n--x--',
            400,
        ),
        ("multipart/form-data; boundary=x", b"--x\r\na: b\r\n\r\nA" + b"\r\n--x" * 600, 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="audio"\r\n\r\nA\r\n' * 2 + b"--x--",
            400,
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="request"\r\n\r\n{}\r\n' * 2 + b"--x--",
            400,
        ),
    ],
)
def test_other_bodies_are_refused(client: httpx.Client, content_type: str, body: bytes, status: int) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = client.post("/v1/identify", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, "INVALID_ARGUMENT")


@pytest.mark.parametrize("source", [{"encoded": "AAAA"}, {"raw": {"samples": "AAAA"}}])
def test_audio_that_is_sent_twice_is_refused(client: httpx.Client, source: dict[str, Any]) -> None:
    request = json.dumps({"audio": source})
    answer = client.post("/v1/identify", files={"audio": b"A"}, data={"request": request})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "the form has audio as a file and in request"


def test_compressed_bodies_are_refused(client: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = client.post("/v1/identify", content=gzip.compress(b"{}"), headers=headers)
    assert answer.status_code == 415
    assert "compressed bodies are not read" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/v1/identify/", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/page.py", 404),
        ("GET", "/examples/..%2fbundle.json", 404),
        ("GET", "/v1/identify", 405),
        ("PUT", "/v1/models", 405),
        ("GET", "/v1/models?variant=da", 400),
        ("POST", "/v1/identify?top_k=1", 400),
        ("GET", "/v1/speakers?page_size=many", 400),
    ],
)
def test_other_addresses_are_refused(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_calls_are_counted_and_logged_as_grpc_s(toy_server: ServerProcess, client: httpx.Client) -> None:
    name = 'speakerlens_requests_total{code="NOT_FOUND",method="Embed",variant="_none"}'
    before = toy_server.metrics().get(name, 0)
    body = {"models": [{"variant": "nothing"}], "audio": {"encoded": "AAAA"}}
    answer = client.post("/v1/embed", json=body, headers={"x-request-id": "from-a-browser"})
    assert answer.headers["x-request-id"] == "from-a-browser"
    assert toy_server.metrics()[name] == before + 1
    toy_server.wait_for_log(r"request=from-a-browser method=Embed variant=_none code=NOT_FOUND")


@pytest.mark.parametrize(("timeout", "status"), [("0", 504), ("1", 504), ("-1", 400), ("1.5", 400), ("9" * 40, 400)])
def test_a_deadline_is_a_header(client: httpx.Client, timeout: str, status: int) -> None:
    answer = client.post("/v1/identify", files={"audio": flac(20)}, headers={"x-timeout-ms": timeout})
    assert answer.status_code == status


def test_a_client_that_leaves_is_a_cancelled_call(toy_server: ServerProcess) -> None:
    name = 'speakerlens_requests_total{code="CANCELLED",method="Identify",variant="_none"}'
    before = toy_server.metrics().get(name, 0)
    place = urlsplit(toy_server.ready["http"])
    with socket.create_connection((str(place.hostname), int(place.port or 0))) as connection:
        connection.sendall(b"POST /v1/identify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        connection.sendall(b"content-length: 1000\r\n\r\n{")
        time.sleep(0.2)
    toy_server.wait_for_metric(name, before + 1)
    toy_server.wait_for_metric("speakerlens_requests_in_flight", 0)


def test_pages_of_other_sites_are_refused(client: httpx.Client) -> None:
    own = f"http://{client.base_url.netloc.decode()}"
    assert client.get("/v1/models", headers={"origin": own}).status_code == 200
    for origin in ("http://other.example", "null", own.replace("http", "https") + "0"):
        assert client.get("/v1/models", headers={"origin": origin}).status_code == 403
