import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.toy import write_config

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


def test_the_benchmark_of_training(toy_corpus: Path, tmp_path: Path) -> None:
    config, record = write_config(tmp_path), tmp_path / "speeds.json"
    words = [config, "--corpus", toy_corpus, "--variants", "clean,act-da", "--updates", "2", "--repeats", "1"]
    command = [sys.executable, SCRIPT, *words, "--device", "cpu", "--json", record]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads(record.read_text())
    assert [speed["variant"] for speed in written["speeds"]] == ["clean", "act-da"]
    for speed in written["speeds"]:
        assert f"{speed['variant']:9} {speed['rows']:5}" in done.stdout
        slower = min(speed["loader"], speed["step"])
        assert speed["ratio"] == pytest.approx(speed["together"] / slower)
        assert slower > 0
        assert speed["reading"] > 0
        assert speed["mixing"] > 0
        assert (speed["drawing"] > 0) == (speed["variant"] == "act-da")


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "none.yaml"), "--corpus", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
