"""The job for Ray: the same rows as the command's, also where a worker is killed. Needs the extra `ray`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import soundfile

from tests.conftest import ROOT
from tests.serving import toy
from tests.serving.harness import talk

pytestmark = pytest.mark.slow
SECONDS = 600


def workers() -> list[int]:
    """Ray names the processes of its workers after what they run."""
    found = subprocess.run(["pgrep", "-f", "^ray::MapWorker"], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def test_killed_worker_of_ray_loses_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    bundle = toy.write_bundle(tmp_path / "bundles", "clean", 1)
    good = [tmp_path / f"{number}.wav" for number in range(8)]
    for number, file in enumerate(good):
        soundfile.write(file, talk(0.6 + 0.1 * number, seed=number), 16_000)
    paths = [*good, *[tmp_path / "missing.wav"] * 2000, *good]
    (tmp_path / "list").write_text("".join(f"{path}\n" for path in paths))
    before = set(workers())
    words = [sys.executable, str(ROOT / "deploy" / "ray" / "score.py"), str(tmp_path / "list"), str(bundle)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    deadline = time.monotonic() + SECONDS
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*words, str(tmp_path / "out"), "2"], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        while not (found := set(workers()) - before):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3)
        os.kill(found.pop(), signal.SIGKILL)
        assert process.wait(max(1.0, deadline - time.monotonic())) == 0, (tmp_path / "log").read_text()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    table = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    assert sorted(row["path"] for row in table) == sorted(map(str, paths))
    assert sum(row["code"] is None for row in table) == 2 * len(good)
