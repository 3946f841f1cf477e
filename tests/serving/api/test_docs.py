"""The example of docs/inference.md, as written."""

import re
import subprocess
import sys
from pathlib import Path

import soundfile as sf

from tests.conftest import ROOT
from tests.serving import toy, toy_graph
from tests.serving.api.requests import OUTPUTS
from tests.serving.harness import ServerProcess, voice

PAGE = (ROOT / "docs" / "inference.md").read_text("utf-8")


def test_example_runs(toy_server: ServerProcess, tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "example.flac"
    sf.write(file, voice(1.0), 16_000)
    for written, here in (
        ("build/demo/example-corrupted.flac", str(file)),
        ("127.0.0.1:50051", toy_server.ready["grpc"]),
    ):
        assert code.count(written) == 1
        code = code.replace(written, here)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second, *named = done.stdout.splitlines()
    assert first.startswith("1 speaker ")
    assert [line.split()[0] in toy.speakers() for line in named] == [True] * 3
    assert named[0].split()[0] == toy.speakers()[int(first.split()[2])]
    assert second == f"(1, {toy_graph.EMBEDDING}) (1, {toy.MEL}, {1 + (16_000 - toy_graph.FRAME) // toy_graph.SHIFT})"


def test_every_output_is_documented() -> None:
    for name in OUTPUTS[:4] + OUTPUTS[-1:]:
        assert f"`{name}`" in PAGE
