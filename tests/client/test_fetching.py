"""Bundles are fetched over HTTP and from S3, complete and with the right digests or not at all."""

import datetime
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from speakerlens import fetching, s3
from speakerlens.cli.main import main
from speakerlens.fetching import FetchError, Source, fetch
from speakerlens.serving.models.reader import read_bundle
from tests.serving import toy

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}


class Store:
    """Serves a folder; `faults` has what to answer instead, by the end of a path, and for how many requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.faults: dict[str, tuple[int, int]] = {}
        self.cut: set[str] = set()
        self.seen = Counter[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self.answer(handler)

            def log_message(handler, *_: Any) -> None:  # noqa: N805
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append((handler.path, {name.lower(): value for name, value in handler.headers.items()}))
        name = handler.path.rpartition("/")[2]
        self.seen[name] += 1
        status, count = self.faults.get(name, (0, 0))
        file = self.folder / handler.path.lstrip("/")
        if self.seen[name] <= count or not file.is_file():
            handler.send_error(status or 404)
            return
        content = file.read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2] if name in self.cut else content)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(fetching, "BACKOFF_SECONDS", 0.001)
    toy.write_bundle(tmp_path / "store", "act-da", 3)
    store = Store(tmp_path / "store")
    yield store
    store.server.shutdown()
    store.server.server_close()


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()


def source(store: Store) -> Source:
    return Source.parse(f"{store.address}/act-da/3#sha256={digest(store.folder / 'act-da' / '3')}")


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.rglob("*"))


def test_bundle_is_fetched_complete_and_only_once(store: Store, tmp_path: Path) -> None:
    folder, fetched = fetch(source(store), tmp_path / "out")
    assert (folder, fetched) == (tmp_path / "out" / "act-da" / "3", True)
    assert read_bundle(folder).name == "act-da/3"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["act-da"]
    before = len(store.requests)
    assert fetch(source(store), tmp_path / "out") == (folder, False)
    assert len(store.requests) == before + 1
    (folder / "predict.onnx").write_bytes(b"damaged")
    with pytest.raises(FetchError, match="is another bundle, or is damaged"):
        fetch(source(store), tmp_path / "out")


def rewrite(store: Store, change: Callable[[dict[str, Any]], object]) -> None:
    file = store.folder / "act-da" / "3" / "bundle.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_file_with_another_digest_is_refused(store: Store, tmp_path: Path) -> None:
    (store.folder / "act-da" / "3" / "predict.onnx").write_bytes(b"something else")
    with pytest.raises(FetchError, match=r"predict\.onnx has the SHA-256 .*, not .* as in bundle\.json"):
        fetch(source(store), tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_manifest_with_another_digest_is_refused(store: Store, tmp_path: Path) -> None:
    wanted = source(store)
    rewrite(store, lambda manifest: manifest.update(version=4))
    with pytest.raises(FetchError, match=r"bundle\.json has the SHA-256 "):
        fetch(wanted, tmp_path / "out")
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/../../b", "bundle.json", ""])
def test_file_outside_its_bundle_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    rewrite(store, lambda manifest: manifest["files"].update({name: "0" * 64}))
    with pytest.raises(FetchError, match="is not the manifest of a bundle"):
        fetch(source(store), tmp_path / "out")
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize(
    "change", [{"variant": "../x"}, {"version": 0}, {"version": "3"}, {"files": []}, {"variant": 1}]
)
def test_manifest_of_another_kind_is_refused(store: Store, tmp_path: Path, change: dict[str, Any]) -> None:
    rewrite(store, lambda manifest: manifest.update(change))
    with pytest.raises(FetchError, match="is not the manifest of a bundle"):
        fetch(source(store), tmp_path / "out")


def test_failures_that_pass_are_repeated(store: Store, tmp_path: Path) -> None:
    store.faults = {"bundle.json": (503, 2), "predict.onnx": (429, 1)}
    assert read_bundle(fetch(source(store), tmp_path / "out")[0])
    assert (store.seen["bundle.json"], store.seen["predict.onnx"]) == (3, 2)


def test_failures_that_stay_are_one_sentence(store: Store, tmp_path: Path) -> None:
    store.faults = {"bundle.json": (403, 99)}
    with pytest.raises(FetchError, match=r"act-da/3/bundle\.json cannot be fetched: HTTP status 403"):
        fetch(source(store), tmp_path / "out")
    assert store.seen["bundle.json"] == 1
    store.faults, store.cut = {}, {"explain.onnx"}
    with pytest.raises(FetchError, match=r"explain\.onnx cannot be fetched after 5 attempts: .*(early|IncompleteRead)"):
        fetch(source(store), tmp_path / "out")
    store.server.server_close()
    with pytest.raises(FetchError, match="after 5 attempts"):
        fetch(Source.parse("http://127.0.0.1:1/act-da/3#sha256=" + "0" * 64), tmp_path / "out")
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ftp://host/act-da/3", "not https://HOST/"),
        ("act-da/3", "not https://HOST/"),
        ("https:///act-da/3", "not https://HOST/"),
        ("http://host/act-da/3", "without TLS"),
        ("https://host/act-da/3#md5=00", "64 hexadecimal digits"),
        ("https://host/act-da/3#sha256=00", "64 hexadecimal digits"),
        ("https://host/act-da/3?signature=1", "a bundle is a folder"),
    ],
)
def test_wrong_source_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(FetchError, match=sentence):
        Source.parse(text)


def test_s3_requests_are_signed(store: Store, tmp_path: Path) -> None:
    environ = {**KEYS, "AWS_SESSION_TOKEN": "token", "AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL_S3": store.address}
    wanted = Source.parse(f"s3://act-da/3#sha256={digest(store.folder / 'act-da' / '3')}")
    fetch(wanted, tmp_path / "out", environ)
    path, headers = store.requests[0]
    assert path == "/act-da/3/bundle.json"
    assert (
        "/eu-west-1/s3/aws4_request,SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,"
        in (headers["authorization"])
    )
    assert headers["x-amz-security-token"] == "token"
    fetch(wanted, tmp_path / "public", {"AWS_ENDPOINT_URL": store.address})
    assert "authorization" not in store.requests[-1][1]


def test_signature_is_that_of_amazons_example() -> None:
    """Amazon S3 API Reference, "Signature Calculations for the Authorization Header", example "GET Object"."""
    keys = s3.credentials(KEYS)
    assert keys is not None
    moment = datetime.datetime(2013, 5, 24, tzinfo=datetime.UTC)
    url = "https://examplebucket.s3.amazonaws.com/test.txt"
    headers = s3.signed_headers(url, keys, "us-east-1", moment, {"Range": "bytes=0-9"})
    signature = headers["authorization"].rpartition("=")[2]
    assert signature == "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"


def test_address_of_an_object_is_amazons_without_an_endpoint() -> None:
    environ = {"AWS_DEFAULT_REGION": "eu-west-1"}
    assert s3.object_url("models", "a b/3", environ) == "https://s3.eu-west-1.amazonaws.com/models/a%20b/3"


def test_command_fetches_and_says_what_it_did(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"{store.address}/act-da/3#sha256={digest(store.folder / 'act-da' / '3')}"
    words = ["bundles", "fetch", address, "--out", str(tmp_path / "out")]
    assert (main(words), main(words)) == (0, 0)
    folder = tmp_path / "out" / "act-da" / "3"
    assert capsys.readouterr().out == f"{folder} fetched\n{folder} is there\n"
    assert main(["bundles", "fetch", address[:-1] + "g", "--out", str(tmp_path / "out")]) == 2
    store.faults = {"bundle.json": (404, 99)}
    assert main(words) == 1
    assert capsys.readouterr().err.count("error: ") == 2
