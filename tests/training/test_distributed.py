import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from speakerlens.training.checkpoint import load_run, read_checkpoint
from speakerlens.training.cli import main
from tests.training.toy import TOY_CONFIG, make_corpus, write_config
from tests.training.two_processes import make_block

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
# Sums over shares round differently from sums over the whole, and networks so small can be thrown off their path by
# that: so is one process that sees a batch's rows in another order. A low learning rate keeps them together.
CONFIG = TOY_CONFIG.replace("width: 2", "width: 4").replace("batch_size: 6", "batch_size: 16")
CONFIG = CONFIG.replace("{kind: adamw, learning_rate: 0.01}", "{kind: sgd, learning_rate: 0.002, average_last: 0.5}")
CONFIG += "interference: {share: 0.4}\n"  # 11 copies of the 28 crops of act-da: one process has more than the other
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class Done(NamedTuple):
    """The folder that two processes worked in, what each of them reported, and what they printed."""

    folder: Path
    results: list[dict[str, Any]]
    printed: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("two")
    make_corpus(folder / "corpus")
    write_config(folder, CONFIG)
    torch.manual_seed(0)
    torch.save(make_block().state_dict(), folder / "block.pt")
    torch.save(5 * torch.randn(7, 3, 8, 10) + 100, folder / "rows.pt")
    # Without torchrun, whose own start costs as much as that of a process; the test of its signals covers it.
    group = {**ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(ROOT / "tests" / "training" / "two_processes.py"), str(folder)]
    processes = []
    with (folder / "printed").open("w+", encoding="utf-8") as printed:
        for rank in ("0", "1"):
            own = {**group, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, stdout=printed, stderr=printed, cwd=ROOT, env=own))
        codes = [process.wait(timeout=600) for process in processes]
    text = (folder / "printed").read_text(encoding="utf-8")
    assert codes == [0, 0], text
    return Done(folder, [json.loads((folder / f"results-{rank}.json").read_text()) for rank in (0, 1)], text)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def fit_alone(done: Done, variant: str, out: Path) -> Path:
    words = ["--config", done.folder / "toy.yaml", "--corpus", done.folder / "corpus", "--out", out]
    assert main(["fit", "--variant", variant, "--device", "cpu", *map(str, words)]) == 0
    return out


def events(run: Path, event: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == event]


def largest_difference(one: Path, other: Path) -> float:
    first, second = read_checkpoint(one), read_checkpoint(other)
    assert first["step"] == second["step"]
    return max(float((value - second["network"][name]).abs().max()) for name, value in first["network"].items())


def test_collective_operations_return_on_every_process(done: Done) -> None:
    for rank, result in enumerate(done.results):
        assert result["world"] == [rank, 2]
        assert result["agree"] == f"('of {rank}', 15)"
        assert result["refused"] == "UserError: process 1: no such file"  # on both
        assert result["gather"] == ["", "größer"]
        assert result["share"] == [3, [0.0, 1.0, 2.0, 3.0]]
        assert result["mean"] == [1.0, 5.0]
        assert result["largest"] == 7
    assert [result["broken"] for result in done.results] == [
        "UserError: process 1: a mistake",
        "ValueError: a mistake",
    ]


def test_batch_normalisation_uses_all_rows(done: Done) -> None:
    block = make_block()
    block.load_state_dict(torch.load(done.folder / "block.pt", weights_only=True))
    rows = torch.load(done.folder / "rows.pt", weights_only=True).requires_grad_()
    answer = block(rows)
    answer.square().sum().backward()
    shares = [torch.load(done.folder / f"block-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank, share in enumerate(shares):
        torch.testing.assert_close(share["answer"], answer[rank::2].detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(share["rows"], rows.grad[rank::2], rtol=1e-3, atol=1e-4)
        for name, value in block.state_dict().items():
            torch.testing.assert_close(share["state"][name], value, rtol=1e-5, atol=1e-6)
        for parameter, gradient in zip(block.parameters(), share["gradients"], strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["da", "act-da"])
def test_two_processes_have_the_loss_curve_of_one(done: Done, tmp_path: Path, variant: str) -> None:
    one, two = fit_alone(done, variant, tmp_path / variant), done.folder / variant
    for figure in ("loss", "cross_entropy", "alignment"):
        curves = [[line[figure] for line in events(run, "update")] for run in (one, two)]
        assert curves[0] == pytest.approx(curves[1], abs=1e-4)
        assert len(curves[1]) == 6
    for figure in ("accuracy", "grad_norm"):
        curves = [[line[figure] for line in events(run, "update")] for run in (one, two)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    dev = [[(line["clean"], line["corrupted"]) for line in events(run, "dev")] for run in (one, two)]
    assert dev[0] == dev[1]
    assert largest_difference(one, two) < 1e-4
    assert (events(one, "start")[0]["processes"], events(two, "start")[0]["processes"]) == (1, 2)


def test_signal_to_one_process_stops_both_and_resumes_exactly(done: Done, tmp_path: Path) -> None:
    assert [result["codes"]["stopped"] for result in done.results] == [128 + signal.SIGTERM] * 2
    assert [result["codes"]["resumed"] for result in done.results] == [0, 0]
    assert largest_difference(done.folder / "stopped", done.folder / "act-da") == 0.0
    first, second = (read_checkpoint(done.folder / name)["optimiser"]["state"] for name in ("stopped", "act-da"))
    assert all(torch.equal(first[key]["momentum_buffer"], second[key]["momentum_buffer"]) for key in second)
    first, second = (read_checkpoint(done.folder / name)["average"] for name in ("stopped", "act-da"))
    assert int(first["n_averaged"]) == 3
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert [line["step"] for line in events(done.folder / "stopped", "update")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in events(done.folder / "stopped", "stop")] == [3, 6]


def test_wrong_input_is_printed_once_and_stops_both(done: Done) -> None:
    for result in done.results:
        codes = result["codes"]
        assert (codes["da"], codes["act-da"]) == (0, 0)
        assert (codes["uneven"], codes["other seed"], codes["diverged"]) == (2, 2, 2)
    errors = [line for line in done.printed.splitlines() if line.startswith("error: ")]
    assert errors[:2] == [
        "error: data.batch_size 7 makes 7 crops, which cannot be divided equally among 2 processes; choose another",
        "error: process 1 has another configuration than process 0; all machines must have the same",
    ]
    assert errors[2].startswith("error: update 2: the cross-entropy is")
    assert "checkpoint.pt still holds update 0" in errors[2]
    assert len(errors) == 3
    assert "Traceback" not in done.printed
    assert "Warning" not in done.printed
    assert done.printed.count("stopped: stopped after update 3 of 6; repeat the command to resume") == 1


def test_run_of_two_processes_resumes_in_one(done: Done, tmp_path: Path) -> None:
    started = tmp_path / "run"
    shutil.copytree(done.folder / "half", started)
    assert read_checkpoint(started)["step"] == 3
    fit_alone(done, "act-da", started)
    curves = [[line["loss"] for line in events(run, "update")] for run in (started, done.folder / "act-da")]
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert largest_difference(started, done.folder / "act-da") < 1e-4


def test_signal_to_torchrun_stops_with_a_checkpoint(done: Done, tmp_path: Path) -> None:
    words = ["--config", done.folder / "toy.yaml", "--corpus", done.folder / "corpus", "--out", tmp_path / "run"]
    fit = ["-m", "training", "fit", "--variant", "da", "--updates", "100000", "--device", "cpu", *map(str, words)]
    process = subprocess.Popen(
        [*TORCHRUN, *fit], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_update(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    run = load_run(tmp_path / "run")
    assert run.step > 2
    assert output.count(f"stopped after update {run.step} of 100000; repeat the command to resume") == 1
    assert [line["step"] for line in events(tmp_path / "run", "update")] == list(range(1, run.step + 1))


def wait_for_update(process: "subprocess.Popen[str]", out: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        log = out / "log.jsonl"
        if log.exists() and f'"event": "update", "step": {step}' in log.read_text():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no update within five minutes")
