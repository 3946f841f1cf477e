"""The work of test_distributed.py's two processes: one launch for many tests, as it takes seconds.

torchrun --nproc-per-node 2 tests/training/two_processes.py FOLDER
"""

import json
import os
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from speakerlens.training.cli import main
from speakerlens.training.data.batches import Batch
from speakerlens.training.distributed import World, joined
from speakerlens.training.errors import UserError
from speakerlens.training.loop import Figures, Trainer
from speakerlens.training.model.normalisation import synchronise_normalisation

RANK = int(os.environ.get("RANK", "0"))


def outcome(call: Any) -> str:
    """Return the result or the error of a call, as text."""
    try:
        return str(call())
    except Exception as error:  # noqa: BLE001 - printed for the test
        return f"{type(error).__name__}: {error}"


def fail_on_process_1(error: Exception) -> str:
    if RANK == 1:
        raise error
    return "fine"


def talk(world: World) -> dict[str, Any]:
    """Return the results of all collective operations."""
    shared = world.share({"step": 3, "weights": torch.arange(4.0)} if world.leads else "not this")
    return {
        "world": [world.rank, world.size],
        "agree": outcome(lambda: world.agree(lambda: f"of {RANK}", 15 * RANK)),
        "refused": outcome(lambda: world.together(lambda: fail_on_process_1(UserError("no such file")))),
        "broken": outcome(lambda: world.together(lambda: fail_on_process_1(ValueError("a mistake")))),
        "gather": world.gather("" if RANK == 0 else "größer"),
        "share": [shared["step"], shared["weights"].tolist()],
        "mean": world.mean(torch.tensor([1.0, 10.0 * RANK])).tolist(),
        "largest": world.largest(7 - RANK),
    }


def make_block() -> nn.Module:
    """Return the smallest network with batch normalisation inside."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))


def normalise(folder: Path) -> None:
    """Save the output, gradients and running statistics of layers normalised over both processes' rows."""
    block = make_block()
    block.load_state_dict(torch.load(folder / "block.pt", weights_only=True))
    synchronise_normalisation(block, torch.device("cpu"))
    rows = torch.load(folder / "rows.pt", weights_only=True)[RANK::2].requires_grad_()  # 4 and 3 of them
    answer = block(rows)
    answer.square().sum().backward()
    for parameter in block.parameters():
        dist.all_reduce(parameter.grad)
    torch.save(
        {
            "answer": answer.detach(),
            "rows": rows.grad,
            "state": block.state_dict(),
            "gradients": [parameter.grad for parameter in block.parameters()],
        },
        folder / f"block-{RANK}.pt",
    )


def signal_after(update: int) -> Any:
    """Send SIGTERM to process 1 in the middle of an update; return the original `Trainer.update`."""
    original = Trainer.update

    def and_signal(self: Trainer, step: int, batch: Batch) -> Figures:
        if step == update - 1 and RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, batch)

    Trainer.update = and_signal  # type: ignore[method-assign]
    return original


def train(folder: Path) -> dict[str, int]:
    """Run `fit` several times; return the exit codes."""

    def fit(variant: str, out: str, *settings: str) -> int:
        words = ["--config", folder / "toy.yaml", "--corpus", folder / "corpus", "--out", folder / out]
        overrides = [word for setting in settings for word in ("--set", setting)]
        return main(["fit", "--variant", variant, "--device", "cpu", *map(str, words), *overrides])

    codes = {"da": fit("da", "da"), "act-da": fit("act-da", "act-da")}
    original = signal_after(3)
    codes["stopped"] = fit("act-da", "stopped")
    Trainer.update = original  # type: ignore[method-assign]
    if RANK == 0:
        shutil.copytree(folder / "stopped", folder / "half")
    torch.manual_seed(RANK)  # the state of torch's generator must not matter
    codes["resumed"] = fit("act-da", "stopped")
    codes["uneven"] = fit("da", "uneven", "data.batch_size=7")
    codes["other seed"] = fit("da", "other", f"seed={RANK}")
    codes["diverged"] = fit("da", "diverged", "optimiser.learning_rate=1e30", "optimiser.warmup=0", "head.kind=softmax")
    return codes


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    with joined(torch.device("cpu")) as (together, _):
        results = talk(together)
        normalise(target)
        # A process cannot reliably join a group twice, so `fit` gets the existing one.
        with mock.patch("speakerlens.training.fit.joined", lambda device: nullcontext((together, device))):
            results["codes"] = train(target)
    (target / f"results-{RANK}.json").write_text(json.dumps(results))
