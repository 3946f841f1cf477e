"""What the image is built with: its health check, what is left out of it, and its bill of materials."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from deploy.image import builder, sbom
from deploy.image.trim import UNUSED, trim
from speakerlens import probe
from speakerlens.serving.config import Config, parse
from tests.conftest import ROOT
from tests.serving import toy


@contextmanager
def page(status: int) -> Iterator[int]:
    """Answer `/readyz` with a status; the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1), (404, 1)])
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", ""])  # noqa: S104
def test_health_check_asks_the_page_of_readiness(status: int, expected: int, host: str) -> None:
    with page(status) as port:
        variables = {"SPEAKERLENS_METRICS_PORT": str(port), "SPEAKERLENS_METRICS_HOST": host}
        assert probe.main(variables) == expected


def test_health_check_without_metrics_asks_over_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def command(words: list[str]) -> int:
        asked.append(words)
        return 5

    monkeypatch.setattr("speakerlens.cli.main.main", command)
    closed = {"SPEAKERLENS_METRICS_PORT": "1"}
    assert probe.main(closed | {"SPEAKERLENS_HOST": "0.0.0.0"}) == 5  # noqa: S104
    assert probe.main(closed | {"SPEAKERLENS_HOST": "::1", "SPEAKERLENS_PORT": "7"}) == 5
    assert probe.main(closed | {"SPEAKERLENS_PORT": "tcp://10.0.0.1:7"}) == 5
    assert [words[2] for words in asked] == ["127.0.0.1:50051", "[::1]:7", "127.0.0.1:50051"]


def test_health_check_knows_the_servers_defaults_and_links() -> None:
    config = Config()
    assert (config.port, config.metrics_port) == (probe.PORT, probe.METRICS_PORT)
    link = {"SPEAKERLENS_METRICS_PORT": "tcp://10.0.0.2:80"}
    assert probe._port(link, "METRICS_PORT", 8000) == parse([], link).metrics_port


def test_health_check_loads_no_packages() -> None:
    """Their import was nine tenths of its time."""
    code = "import sys, speakerlens.probe; print([name for name in sys.modules if name in ('grpc', 'numpy', 'http')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
    (line,) = [line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if line.startswith("    CMD ")]
    assert json.loads(line.strip().removeprefix("CMD ")) == ["python", "-m", "speakerlens.probe"]


def test_what_is_left_out_is_found_and_nothing_else(tmp_path: Path) -> None:
    kept = ["numpy/__init__.py", "numpy/_core/core.so", "onnxruntime/capi/state.so", "numpy-1.dist-info/RECORD"]
    files = [
        *kept,
        *(str(Path(package) / _example(pattern)) for package, patterns in UNUSED.items() for pattern in patterns),
    ]
    for name in files:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x" * 10)
    (tmp_path / kept[-1]).write_text("numpy/__init__.py,,\nnumpy/f2py/x.py,,\nnumpy-1.dist-info/RECORD,,\n")
    assert trim(tmp_path) == 10 * (len(files) - len(kept))
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()) == sorted(kept)
    assert (tmp_path / kept[-1]).read_text() == "numpy/__init__.py,,\nnumpy-1.dist-info/RECORD,,\n"
    with pytest.raises(ValueError, match="removes nothing"):
        trim(tmp_path)


def _example(pattern: str) -> str:
    """Return a file that a pattern finds, or that lies in the folder that it finds."""
    name = pattern.replace("**/", "sub/").replace("*", "x")
    return name if "." in Path(name).name else f"{name}/x.py"


@pytest.mark.parametrize("lock", ["serve-cpu", "serve-gpu", "serve-gpu-cuda12"])
def test_bill_of_materials_has_every_package_of_the_lock(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text("utf-8")
    document = sbom.sbom(text, lock)
    assert document == sbom.sbom(text, lock)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    versions = {each["name"]: each["version"] for each in document["components"]}
    assert len(versions) == len(document["components"]), "a marker chose two versions"
    assert f"\nnumpy=={versions['numpy']} ; " in text
    assert "tzdata" not in versions, "it is for Windows"
    runtime = "onnxruntime" if lock == "serve-cpu" else "onnxruntime-gpu"
    (found,) = [each for each in document["components"] if each["name"] == runtime]
    digests = {part["content"] for each in found["externalReferences"] for part in each["hashes"]}
    assert digests
    assert all(f"--hash=sha256:{digest}" in text for digest in digests)
    assert {each["ref"] for each in document["dependencies"]} == {"speakerlens"}


def test_bill_of_materials_refuses_markers_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="extra == 'x'"):
        sbom.sbom("x==1 ; extra == 'x' \\\n    --hash=sha256:00\n", "lock")


def test_copy_of_the_sources_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    files = {
        "Dockerfile": "FROM x",
        ".dockerignore": "*\n!code\n",
        "code/a.py": "1",
        "code/b.py": "2",
        "tests/t.py": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "code" / "run").symlink_to("a.py")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=one"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(builder, "ROOT", root)
    first = builder.frozen(tmp_path / "one")
    assert (first["files"], first["changed"]) == (5, False)
    (root / "code" / "a.py").write_text("3")
    (root / "code" / "b.py").unlink()
    (root / "code" / "new.py").write_text("4")
    second = builder.frozen(tmp_path / "two")
    assert (second["files"], second["changed"], second["commit"]) == (5, True, first["commit"])
    assert second["sha256"] != first["sha256"]
    copied = {
        name: sorted(str(file.relative_to(tmp_path / name)) for file in _below(tmp_path / name))
        for name in ("one", "two")
    }
    assert copied["one"] == [".dockerignore", "Dockerfile", "code/a.py", "code/b.py", "code/run"]
    assert copied["two"] == [".dockerignore", "Dockerfile", "code/a.py", "code/new.py", "code/run"]
    assert (tmp_path / "one" / "code" / "a.py").read_text() == "1"
    assert (tmp_path / "two" / "code" / "run").readlink() == Path("a.py")


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.slow
@pytest.mark.process
def test_image_is_built_and_run_without_rights(tmp_path: Path) -> None:
    """With docker or buildah as root; `make image-test` does the same with the demo's bundles."""
    try:
        name = builder.program()
    except builder.BuildError as error:
        pytest.skip(str(error))
    if name == "buildah" and os.getuid():
        pytest.skip("buildah's images can be run without rights by root alone")
    toy.write_bundle(tmp_path / "bundles", "v", 1)
    out = tmp_path / "image.json"
    command = [sys.executable, "-m", "deploy.image.check", "--bundles", str(tmp_path / "bundles"), "--out", str(out)]
    done = subprocess.run([*command, "--once"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["failed"] == []
    assert report["cpu"]["beyond the base, MB"] > 50
