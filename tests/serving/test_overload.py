"""Three times the capacity, with the benchmark, the real server, and a device that takes its time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serving import toy


@pytest.mark.slow
def test_goodput_under_overload(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path / "bundles", "v", 1)
    load = ["--variant=v", "--shortest=0.9", "--longest=1", "--device-seconds=0.1", "--deadline=3", "--seconds=10"]
    command = [sys.executable, "-m", "benchmarks.overload", str(tmp_path / "bundles"), *load, "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, cwd=ROOT)
    figures = json.loads((tmp_path / "overload.json").read_text(encoding="utf-8"))
    assert min(figures["offered_per_s"]) > 2 * max(figures["capacity_per_s"])
    assert figures["goodput_over_capacity"] > 0.9
    assert figures["kept"] > 0.99
    refused = [each for kind, each in figures["statuses"].items() if kind.endswith("at once")]
    assert sum(each["calls"] for each in refused) > figures["accepted"]
