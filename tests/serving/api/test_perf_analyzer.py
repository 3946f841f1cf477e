"""A load run with Triton's `perf_analyzer`: it accepts the server's metadata and loses no request."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.serving.harness import ServerProcess

MISSING = 3
CALLS = 'speakerlens_requests_total{{code="{}",method="{}",variant="{}"}}'


@pytest.mark.slow
def test_perf_analyzer(toy_server: ServerProcess) -> None:
    command = [sys.executable, "benchmarks/perf_analyzer.py", toy_server.ready["grpc"], "da"]
    # A window of this machine may be twice another: what is shown is that it works, not how fast it is.
    flags = ["--concurrency", "1", "6", "--seconds", "1", "--window-ms", "1500", "--stability", "999"]
    before = toy_server.metrics()
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode == MISSING:
        pytest.skip(f"NOT RUN: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stdout
    for line, callers in zip(lines[2:], (1, 6), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert int(cells[0]) == callers
        assert all(float(cell) > 0 for cell in cells[1:]), line
    after = toy_server.metrics()

    def calls(code: str, method: str, variant: str) -> float:
        name = CALLS.format(code, method, variant)
        return after.get(name, 0) - before.get(name, 0)

    assert calls("OK", "ModelInfer", "da") > 50
    for method in ("ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        assert calls("OK", method, "_none") >= 1, method
    refused = {name for name in after if "requests_total{" in name and 'code="OK"' not in name}
    # Calls that it gives up at the end of a run are cancelled; no other may fail.
    assert all(after[name] == before.get(name, 0) or 'code="CANCELLED"' in name for name in refused)
