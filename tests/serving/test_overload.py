"""Three times the capacity, with the benchmark, the real server, and a device that takes its time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serving import toy

# Where the client is late itself, it says nothing of the server.
LATE_SECONDS, ATTEMPTS = 0.05, 3


@pytest.mark.slow
def test_goodput_under_overload(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path / "bundles", "v", 1)
    load = ["--variant=v", "--kinds=predict", "--lengths=0.9-1", "--times=3", "--deadlines=3", "--device-seconds=0.1"]
    command = [sys.executable, "-m", "benchmarks.overload", str(tmp_path / "bundles"), *load, "--out", str(tmp_path)]
    for _ in range(ATTEMPTS):
        subprocess.run(command, check=True, timeout=300, cwd=ROOT)
        [figures] = json.loads((tmp_path / "overload.json").read_text(encoding="utf-8"))["loads"]
        if figures["late_p99_s"] < LATE_SECONDS:
            break
    else:
        pytest.skip(f"NOT RUN: the machine is too busy, requests were sent {figures['late_p99_s']:.2f} s late")
    assert min(figures["offered_per_s"]) > 2 * max(figures["capacity_per_s"])
    assert figures["goodput_over_capacity"] > 0.9
    assert figures["kept"] > 0.99
    refused = [each for kind, each in figures["statuses"].items() if kind.endswith("at once")]
    assert sum(each["calls"] for each in refused) > figures["accepted"]
