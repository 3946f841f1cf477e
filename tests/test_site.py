"""The site of docs/, and its tutorial."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speakerlens.demo import unpack
from tests.conftest import ROOT
from tests.serving.harness import ServerProcess

pytestmark = pytest.mark.slow


def test_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (
        "index.html",
        "tutorial.html",
        "client.html",
        "command-line.html",
        "api.html",
        "decisions/index.html",
    ):
        text = (tmp_path / "site" / page).read_text("utf-8")
        assert "fonts.googleapis.com" not in text, "nothing is loaded from another host"
    assert "SpeakerClient" in (tmp_path / "site" / "client.html").read_text("utf-8")


def test_tutorial_runs(tmp_path: Path) -> None:
    """Every cell, in order, on the demo's models."""
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text("utf-8"))["cells"]
    program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    with ServerProcess(unpack(tmp_path / "bundles"), "--window-seconds=3", fresh=True) as server:
        environment["SPEAKERLENS_CLIENT_SERVER"] = server.ready["grpc"]
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "known" in done.stdout
    assert (tmp_path / "kept.flac").read_bytes()[:4] == b"fLaC"
