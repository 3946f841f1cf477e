"""`speakerlens demo`: from the package to a page that answers, without training."""

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx

from speakerlens.demo import unpack

SECONDS = 120  # 30 on a quiet machine


def test_demo_serves_its_models_and_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "speakerlens", "demo", "--port=0", f"--bundles={tmp_path / 'bundles'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            started = time.monotonic()
            assert process.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
            assert found, process.stderr.read() if process.stderr else ""
            assert time.monotonic() - started < SECONDS
            with httpx.Client(base_url=found[0], trust_env=False, timeout=60) as client:
                assert "<title>speakerlens" in client.get("/").text
                settings = client.get("/models.json").json()
                assert [model["variant"] for model in settings["models"]] == ["clean", "da", "act-da"]
                example = settings["examples"][0]
                content = client.get(example["file"]).content
                answers = client.post("/v1/identify", files={"audio": content}).json()["answers"]
                assert [each["speakers"][0]["speaker"] for each in answers] == [example["name"]] * 3
        finally:
            process.terminate()
            process.wait(30)


def test_bundles_are_unpacked_once(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "bundles")
    kept = folder / "da" / "1" / "bundle.json"
    kept.write_text("changed")
    assert unpack(folder) == folder
    assert kept.read_text() == "changed"
    assert sorted(path.name for path in folder.iterdir()) == ["act-da", "clean", "da"]
