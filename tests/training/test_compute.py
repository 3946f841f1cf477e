"""Precision and compilation of the network."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from speakerlens.training.checkpoint import load_run, read_checkpoint
from speakerlens.training.compute import uses_bfloat16
from speakerlens.training.config import ComputeConfig, Config
from speakerlens.training.data.batches import BatchSource
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.fit import fit
from speakerlens.training.loop import Trainer
from speakerlens.training.variants import VARIANTS

CPU = torch.device("cpu")


def test_autocast_follows_the_configured_precision(
    corpus: Corpus, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = BatchSource(corpus, config, VARIANTS["act-pair"], CPU).batch(0)
    losses, types = [], []
    for precision in ("auto", "float32", "bfloat16"):
        trainer = Trainer(replace(config, compute=ComputeConfig(precision)), "act-pair", corpus, CPU)
        trainer.network.encoder.get_submodule("layer1.0.conv1").register_forward_hook(
            lambda *call: types.append(call[2].dtype)
        )
        losses.append(trainer.update(0, batch).loss)
    assert types == [torch.float32, torch.float32, torch.bfloat16]
    assert losses[0] == losses[1] != losses[2]
    assert losses[2] == pytest.approx(losses[0], rel=0.02)
    cuda = torch.device("cuda")
    assert [uses_bfloat16(ComputeConfig(p), cuda) for p in ("auto", "float32", "bfloat16")] == [True, False, True]


def test_compiled_network_keeps_its_parameter_names(
    corpus: Corpus, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as always, but run by torch itself: making kernels takes minutes on few cores."""
    compiled = []
    original = torch.nn.Module.compile

    def by_torch(self: torch.nn.Module, **options: Any) -> None:
        compiled.append(self)
        original(self, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", by_torch)
    averaging = replace(config, updates=2, optimiser=replace(config.optimiser, average_last=1.0))
    for name, compute in {
        "plain": ComputeConfig(precision="float32"),
        "compiled": ComputeConfig(precision="float32", compile=True),
    }.items():
        fit(replace(averaging, compute=compute), "da", corpus, tmp_path / name, CPU)
    assert len(compiled) == 1
    plain, other = (read_checkpoint(tmp_path / name) for name in ("plain", "compiled"))
    assert plain["network"].keys() == other["network"].keys()
    assert plain["average"].keys() == other["average"].keys()
    assert int(other["average"]["n_averaged"]) == 2
    given = [load_run(tmp_path / name).network.state_dict() for name in ("plain", "compiled")]
    for name, value in given[0].items():
        torch.testing.assert_close(given[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_compiling_is_refused_without_support(corpus: Corpus, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(precision: Literal["float32", "bfloat16"]) -> Trainer:
        wanted = replace(config, compute=ComputeConfig(precision=precision, compile=True))
        return Trainer(wanted, "da", corpus, CPU)

    with pytest.raises(UserError, match=r"compute\.compile: on a CPU, compute\.precision must be float32"):
        compiled("bfloat16")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"compute\.compile: needs a compiler \(g\+\+ or clang\+\+\)"):
        compiled("float32")
