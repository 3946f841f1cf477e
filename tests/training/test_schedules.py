"""Schedules of learning rate and margin, and what weight decay applies to."""

from dataclasses import replace

import pytest
import torch

from speakerlens.training.config import Config, HeadConfig, OptimiserConfig
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.loop import Trainer, make_optimiser
from speakerlens.training.schedule import learning_rate_at, margin_at

CPU = torch.device("cpu")


def test_learning_rate_schedule() -> None:
    config = OptimiserConfig(learning_rate=1.0, final_learning_rate=0.01, warmup=0.2, decay="cosine")
    rates = [learning_rate_at(config, step, 21) for step in range(21)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[12] == pytest.approx(0.505)  # half way down
    assert rates[20] == pytest.approx(0.01)
    falling = replace(config, decay="exponential")
    assert learning_rate_at(falling, 12, 21) == pytest.approx(0.1)  # the geometric mean
    assert learning_rate_at(falling, 20, 21) == pytest.approx(0.01)
    assert learning_rate_at(replace(config, decay="none"), 20, 21) == 1.0
    assert learning_rate_at(replace(config, warmup=1.0), 20, 21) == 1.0


def test_margin_schedule() -> None:
    head = HeadConfig(margin=0.3, margin_from=0.2, margin_until=0.5)
    margins = [margin_at(head, step, 10) for step in range(10)]
    assert margins == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3])
    assert margin_at(replace(head, margin_from=0.0, margin_until=0.0), 0, 10) == 0.3


@pytest.mark.parametrize("updates", [10, 11])
def test_margin_growing_over_no_updates_is_a_step(updates: int) -> None:
    head = HeadConfig(margin=0.3, margin_from=0.5, margin_until=0.5)
    margins = [margin_at(head, step, updates) for step in range(updates)]
    assert margins == [0.0] * (updates - updates // 2) + [0.3] * (updates // 2)
    assert margin_at(replace(head, margin_from=1.0, margin_until=1.0), updates - 1, updates) == 0.0


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_weight_decay_excludes_biases_and_normalisation(corpus: Corpus, config: Config, kind: str) -> None:
    network = Trainer(config, "clean", corpus, CPU).network
    chosen = OptimiserConfig(kind="sgd" if kind == "sgd" else "adamw", weight_decay=0.1)
    decayed = {id(p): g["weight_decay"] for g in make_optimiser(network, chosen).param_groups for p in g["params"]}
    for name, parameter in network.named_parameters():
        assert decayed[id(parameter)] == (0.0 if ".bn" in name or "bias" in name or "shortcut.1" in name else 0.1), name
    assert len(decayed) == len(list(network.parameters()))
