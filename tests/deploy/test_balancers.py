"""The real nginx, HAProxy and Envoy before three real servers, one of which is killed; then all are restarted.

Fetches the balancers, into the folder BALANCERS if that is set, and skips those that cannot be had.
benchmarks/failover.py has the drills, and the figures.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.failover import Outcome, measure
from deploy.balancing.balancers import CONFIGURATIONS, FOLDER
from tests.sharing import made_once

pytestmark = [pytest.mark.slow, pytest.mark.process]

CALLERS = 16
LAME_DUCK_SECONDS = 2.0


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    def fetch(folder: Path) -> None:
        command = [str(FOLDER / "fetch.sh"), str(folder), sys.executable]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        (folder / "failure").write_text("" if done.returncode == 0 else done.stderr[-2000:] or "no reason given")

    kept = os.environ.get("BALANCERS")
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        fetch(Path(kept))
    return Path(kept) if kept else made_once(tmp_path_factory, worker_id, "balancers", fetch)


def drilled(way: str, tmp_path: Path, tools: Path | None) -> Outcome:
    try:
        outcome = measure(way, CALLERS, LAME_DUCK_SECONDS, tmp_path, tools)
    except FileNotFoundError as error:
        reason = (tools / "failure").read_text() if tools else ""
        pytest.skip(f"{error}: {reason}")
    assert outcome.hanging == 0
    assert outcome.twice == 0, "an enrolment ran more than once"
    assert outcome.exit_statuses == [0, 0, 0]
    assert all(drill.calls for drill in outcome.drills.values())
    # In a rolling restart no server is lost with what it was doing.
    assert outcome.drills["steady"].enrolments_failed == 0
    return outcome


def test_client_with_three_addresses_loses_nothing(tmp_path: Path) -> None:
    outcome = drilled("list", tmp_path, None)
    assert {name: drill.failed for name, drill in outcome.drills.items()} == {"steady": 0, "kill": 0, "rolling": 0}
    assert outcome.drills["rolling"].enrolments_failed == 0


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_one_retry_is_enough_behind_a_balancer(name: str, tmp_path: Path, tools: Path) -> None:
    """With gRPC's defaults at the client, which repeats nothing by itself."""
    outcome = drilled(name, tmp_path, tools)
    assert {name: drill.failed_again for name, drill in outcome.drills.items()} == {
        "steady": 0,
        "kill": 0,
        "rolling": 0,
    }
    assert outcome.drills["steady"].failed == 0


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_client_behind_a_balancer_loses_nothing(name: str, tmp_path: Path, tools: Path) -> None:
    outcome = drilled(f"{name}-client", tmp_path, tools)
    failed = {name: drill.failed for name, drill in outcome.drills.items()}
    assert failed == {"steady": 0, "kill": 0, "rolling": 0}, [drill.errors for drill in outcome.drills.values()]
