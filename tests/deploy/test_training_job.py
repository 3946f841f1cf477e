"""The Job that trains on several machines: it fits the program, and a machine that is lost is replaced."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from speakerlens.training.checkpoint import load_run
from tests.conftest import ROOT
from tests.training.toy import TOY_CONFIG, make_corpus, write_config

SERVICE, JOB = list(yaml.safe_load_all((ROOT / "deploy" / "training" / "job.yaml").read_text("utf-8")))
POD: dict[str, Any] = JOB["spec"]["template"]["spec"]
(TRAINING,) = POD["containers"]
ARGUMENTS: list[str] = TRAINING["args"]
UPDATES = 200


def value(name: str) -> str:
    (found,) = [each.partition("=")[2] for each in ARGUMENTS if each.startswith(f"--{name}=")]
    return found


def test_machines_of_the_job_find_each_other() -> None:
    name, port = JOB["metadata"]["name"], SERVICE["spec"]["ports"][0]["port"]
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert JOB["spec"]["completions"] == JOB["spec"]["parallelism"] == int(value("nnodes"))
    assert POD["subdomain"] == SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"] == {"job-name": name}
    assert value("rdzv-endpoint") == f"{name}-0.{POD['subdomain']}:{port}"
    assert int(value("nproc-per-node")) == TRAINING["resources"]["limits"]["nvidia.com/gpu"]
    mounts = {each["name"]: each["mountPath"] for each in TRAINING["volumeMounts"]}
    assert value("out").startswith(f"{mounts['data']}/")
    assert set(mounts) == {each["name"] for each in POD["volumes"]}


def start(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """One machine, with the Job's own arguments but for one process, this machine and these folders."""
    own = {
        "nproc-per-node": "1",
        "rdzv-endpoint": f"127.0.0.1:{port}",
        "config": str(folder / "toy.yaml"),
        "corpus": str(folder / "corpus"),
        "out": str(folder / "run"),
    }
    changed = [f"--{name}={own.get(name, each.partition('=')[2])}" for each in ARGUMENTS if (name := _name(each))]
    at = ARGUMENTS.index("-m")
    words = [*changed[:at], *ARGUMENTS[at : at + 3], *changed[at:], "--device=cpu", f"--updates={UPDATES}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "printed").open("ab") as printed:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words],
            cwd=ROOT,
            env=environment,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )


def _name(argument: str) -> str:
    return argument.removeprefix("--").partition("=")[0] if argument.startswith("--") else ""


def steps(run: Path) -> list[int]:
    log = run / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line["step"] for line in lines if line["event"] == "update"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1], ids=["first", "second"])
def test_lost_machine_is_replaced_and_the_run_goes_on(tmp_path: Path, lost: int) -> None:
    make_corpus(tmp_path / "corpus")
    write_config(tmp_path, TOY_CONFIG.replace("checkpoint: 2", "checkpoint: 20"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    machines, replaced = [start(tmp_path, port), start(tmp_path, port)], 0
    deadline = time.monotonic() + 900
    try:
        while len(steps(tmp_path / "run")) < 50:
            assert time.monotonic() < deadline, (tmp_path / "printed").read_text()
            time.sleep(0.1)
        os.killpg(machines[lost].pid, signal.SIGKILL)
        at = len(steps(tmp_path / "run"))
        while any(machine.poll() != 0 for machine in machines):  # as the Job's controller replaces pods that fail
            assert time.monotonic() < deadline, (tmp_path / "printed").read_text()
            for number, machine in enumerate(machines):
                if machine.poll():
                    machines[number] = start(tmp_path, port)
                    replaced += 1
            time.sleep(0.1)
    finally:
        for each in machines:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
                each.wait()
    assert at < UPDATES
    assert 1 <= replaced <= JOB["spec"]["backoffLimit"]
    assert load_run(tmp_path / "run").step == UPDATES
    assert sorted(set(steps(tmp_path / "run"))) == list(range(1, UPDATES + 1))
