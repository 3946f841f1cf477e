import json
import math
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from speakerlens.training.checkpoint import load_run, read_checkpoint
from speakerlens.training.cli import main
from speakerlens.training.config import Config, HeadConfig, OptimiserConfig, load_config
from speakerlens.training.data.batches import Batch, BatchSource
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.dev import DevSet
from speakerlens.training.fit import fit
from speakerlens.training.loop import DivergedError, Figures, Trainer
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.schedule import is_averaged, learning_rate_at, margin_at
from speakerlens.training.variants import VARIANTS
from tests.training.toy import make_corpus, write_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def uninterrupted(corpus: Corpus, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    assert fit(config, "act-da", corpus, out, CPU) == 0
    return out


def assert_same_state(one: Path, other: Path) -> None:
    def compare(a: Any, b: Any, where: str) -> None:
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), where
        elif isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                compare(a[key], b[key], f"{where}.{key}")
        else:
            assert a == b, where

    first, second = read_checkpoint(one), read_checkpoint(other)
    for part in ("step", "network", "optimiser", "random"):
        compare(first[part], second[part], part)


@contextmanager
def interrupted_in_update(number: int) -> Iterator[None]:
    original = Trainer.update

    def update(self: Trainer, step: int, batch: Batch) -> object:
        if step == number - 1:
            raise KeyboardInterrupt
        return original(self, step, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "update", update)
        yield


def log_lines(run: Path, event: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == event]


def test_repeated_run_is_bit_identical(uninterrupted: Path, corpus: Corpus, config: Config, tmp_path: Path) -> None:
    fit(config, "act-da", corpus, tmp_path, CPU)
    assert_same_state(uninterrupted, tmp_path)


@pytest.mark.parametrize("change", ["seed", "variant"])
def test_seed_and_variant_change_the_weights(
    uninterrupted: Path, corpus: Corpus, config: Config, tmp_path: Path, change: str
) -> None:
    other = replace(config, seed=4) if change == "seed" else config
    fit(other, "da-pair" if change == "variant" else "act-da", corpus, tmp_path, CPU)
    weights = [read_checkpoint(run)["network"]["encoder.seg_1.weight"] for run in (uninterrupted, tmp_path)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_resumed_run_equals_an_uninterrupted_one(corpus: Corpus, config: Config, tmp_path: Path, kind: str) -> None:
    chosen = replace(config, optimiser=OptimiserConfig(kind="sgd" if kind == "sgd" else "adamw", learning_rate=0.01))
    fit(chosen, "act-da", corpus, tmp_path / "whole", CPU)
    with interrupted_in_update(4):
        fit(chosen, "act-da", corpus, tmp_path / "broken", CPU)
    assert read_checkpoint(tmp_path / "broken")["step"] == 2  # written at intervals of 2; update 3 is lost
    torch.rand(100)  # whatever else this process does with torch's generator
    assert fit(chosen, "act-da", corpus, tmp_path / "broken", CPU) == 0
    assert_same_state(tmp_path / "whole", tmp_path / "broken")

    def figures(run: Path) -> list[dict[str, Any]]:
        timing = ("time", "utterances_per_second")
        return [{k: v for k, v in line.items() if k not in timing} for line in log_lines(run, "update")]

    assert figures(tmp_path / "whole") == figures(tmp_path / "broken")


def test_finished_run_is_not_trained_again(
    uninterrupted: Path, corpus: Corpus, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (uninterrupted / "checkpoint.pt").stat().st_mtime_ns
    assert fit(config, "act-da", corpus, uninterrupted, CPU) == 0
    assert "act-da is already trained, 6 updates" in capsys.readouterr().out
    assert (uninterrupted / "checkpoint.pt").stat().st_mtime_ns == before


def test_run_folder_of_another_run_is_refused(
    uninterrupted: Path, corpus: Corpus, config: Config, tmp_path: Path
) -> None:
    other_corpus = make_corpus(tmp_path, seconds=0.9)
    longer = replace(config, updates=7)
    softmax = replace(config, seed=9, head=HeadConfig("softmax"))
    for attempt, message in [
        ((config, "da", corpus), "holds a run of variant act-da, not da; choose another --out"),
        ((config, "act-da", other_corpus), "was trained on another corpus"),
        ((longer, "act-da", corpus), "was trained with updates 6, not 7; choose"),
        ((softmax, "act-da", corpus), "was trained with head.kind aam, not softmax, and 3 more values differ"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            fit(*attempt, uninterrupted, CPU)
    assert read_checkpoint(uninterrupted)["step"] == 6


def test_log_has_every_event_and_figure(uninterrupted: Path, config: Config) -> None:
    (start,) = log_lines(uninterrupted, "start")
    assert start["variant"] == "act-da"
    assert start["interference"] == ["noise", "speaker", "reverb"]  # three speakers are too few for babble
    updates = log_lines(uninterrupted, "update")
    assert [line["step"] for line in updates] == [1, 2, 3, 4, 5, 6]
    for index, line in enumerate(updates):
        total = line["cross_entropy"] + config.objective.weight * line["alignment"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["learning_rate"] == pytest.approx(learning_rate_at(config.optimiser, index, 6))
        assert line["margin"] == pytest.approx(margin_at(config.head, index, 6))
        assert line["grad_norm"] > 0
        assert line["alignment"] > 0
        assert line["utterances_per_second"] > 0
        assert 0 <= line["accuracy"] <= 100
    dev = log_lines(uninterrupted, "dev")
    assert [line["step"] for line in dev] == [3, 6]
    assert all(0 <= line[condition] <= 100 for line in dev for condition in ("clean", "corrupted"))
    board = EventAccumulator(str(uninterrupted / "tensorboard"))
    board.Reload()
    assert {"update/loss", "update/margin", "dev/clean", "dev/corrupted"} <= set(board.Tags()["scalars"])
    logged = [event.value for event in board.Scalars("update/loss")]
    assert logged == pytest.approx([line["loss"] for line in updates], rel=1e-6)


def test_run_folder_is_loaded(uninterrupted: Path, config: Config, corpus: Corpus) -> None:
    run = load_run(uninterrupted)
    assert run.finished
    assert run.corpus == corpus.root.resolve()
    assert load_config(uninterrupted / "config.yaml") == config


def test_training_learns(corpus: Corpus, config: Config, tmp_path: Path) -> None:
    longer = replace(config, updates=60, intervals=replace(config.intervals, dev=60, checkpoint=60))
    fit(longer, "da", corpus, tmp_path, CPU)
    (dev,) = log_lines(tmp_path, "dev")
    assert dev["clean"] == 100.0  # of three buzzes; chance is 33


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(
    corpus: Corpus, config: Config, tmp_path: Path, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(config, updates=2)
    assert fit(short, variant, corpus, tmp_path, CPU) == 0
    printed = f"{corpus.root}: has no music, babble for training; continuing without" in capsys.readouterr().out
    assert printed == (variant != "clean")
    aligned = [line["alignment"] for line in log_lines(tmp_path, "update")]
    assert all((value > 0) == VARIANTS[variant].aligned for value in aligned)


def test_divergence_stops_and_keeps_the_last_checkpoint(
    corpus: Corpus, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path)
    wild = ["--set", "optimiser.learning_rate=1e30", "--set", "optimiser.warmup=0", "--set", "head.kind=softmax"]
    where = ["--config", str(path), "--corpus", str(corpus.root), "--out", str(tmp_path / "run")]
    assert main(["fit", "--variant", "da", *where, *wild]) == 2
    message = capsys.readouterr().err
    assert re.search(r"update 2: the cross-entropy is (nan|inf) for \w+-\d\.flac at [\d.]+ s", message)
    assert f"{tmp_path / 'run' / 'checkpoint.pt'} still holds update 0" in message
    saved = read_checkpoint(tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in saved["network"].values())


def test_broken_waveform_is_named_and_not_its_batch(corpus: Corpus, config: Config) -> None:
    trainer = Trainer(config, "clean", corpus, CPU)
    batch = BatchSource(corpus, config, VARIANTS["clean"], CPU).batch(0)
    batch.audio[4, 100] = math.nan
    before = {name: tensor.clone() for name, tensor in trainer.network.named_parameters()}
    with pytest.raises(DivergedError) as error:
        trainer.update(0, batch)
    assert str(error.value) == f"update 1: the cross-entropy is nan for {batch.names[4]}"
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.network.named_parameters())


def test_average_is_over_the_last_weights(corpus: Corpus, config: Config, tmp_path: Path) -> None:
    averaging = replace(config, optimiser=replace(config.optimiser, average_last=0.5))
    trainer = Trainer(averaging, "act-da", corpus, CPU)
    source = BatchSource(corpus, averaging, VARIANTS["act-da"], CPU)
    states = []
    for step in range(6):
        assert (trainer.result is trainer.network) == (step <= 3)
        trainer.update(step, source.batch(step))
        states.append({name: value.double().clone() for name, value in trainer.network.state_dict().items()})
    for name, value in trainer.result.state_dict().items():
        if "num_batches" not in name:  # statistics of normalisation are averaged along
            expected = torch.stack([state[name] for state in states[3:]]).mean(dim=0)
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    fit(averaging, "act-da", corpus, tmp_path, CPU)
    loaded = load_run(tmp_path).network
    audio = torch.randn(2, 4800)
    assert torch.equal(loaded(audio)[0], trainer.result.eval()(audio)[0])
    last = read_checkpoint(tmp_path)["network"]  # which a longer run would go on from
    assert all(torch.equal(value.double(), states[5][name]) for name, value in last.items())


def test_averaging_does_not_change_training(
    uninterrupted: Path, corpus: Corpus, config: Config, tmp_path: Path
) -> None:
    fit(replace(config, optimiser=replace(config.optimiser, average_last=1.0)), "act-da", corpus, tmp_path, CPU)
    one, other = (read_checkpoint(run) for run in (uninterrupted, tmp_path))
    assert all(torch.equal(value, other["network"][name]) for name, value in one["network"].items())
    assert int(other["average"]["n_averaged"]) == 6
    assert [is_averaged(replace(config.optimiser, average_last=0.001), step, 6) for step in (4, 5)] == [False, True]


def test_resumed_average_equals_an_uninterrupted_one(corpus: Corpus, config: Config, tmp_path: Path) -> None:
    averaging = replace(config, optimiser=replace(config.optimiser, average_last=0.6))
    fit(averaging, "da", corpus, tmp_path / "whole", CPU)
    with interrupted_in_update(6):
        fit(averaging, "da", corpus, tmp_path / "broken", CPU)
    assert int(read_checkpoint(tmp_path / "broken")["average"]["n_averaged"]) == 2
    fit(averaging, "da", corpus, tmp_path / "broken", CPU)
    whole, broken = (read_checkpoint(tmp_path / name)["average"] for name in ("whole", "broken"))
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())


def test_dev_accuracy_uses_the_averaged_network(
    corpus: Corpus, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = []
    original = DevSet.accuracy

    def note(self: DevSet, network: SpeakerNetwork, *rest: Any) -> dict[str, float]:
        evaluated.append({name: value.clone() for name, value in network.state_dict().items()})
        return original(self, network, *rest)

    monkeypatch.setattr(DevSet, "accuracy", note)
    averaging = replace(config, optimiser=replace(config.optimiser, average_last=0.4))
    fit(averaging, "da", corpus, tmp_path, CPU)
    given = load_run(tmp_path).network.state_dict()
    assert len(evaluated) == 2
    assert all(torch.equal(value, given[name]) for name, value in evaluated[1].items())


def test_signal_stops_a_run_with_a_checkpoint(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = {"--config": write_config(tmp_path), "--variant": "da", "--corpus": corpus.root, "--out": out}
    words = [str(word) for option in options.items() for word in option]
    update = Trainer.update
    steps: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        last = (steps[-1] if steps else 0) + 2

        def and_signal(self: Trainer, step: int, batch: Batch, last: int = last, number: int = number) -> Figures:
            if step == last:
                os.kill(os.getpid(), number)
            return update(self, step, batch)

        monkeypatch.setattr(Trainer, "update", and_signal)
        assert main(["fit", *words, "--updates", "100000", "--device", "cpu"]) == 128 + number
        steps.append(read_checkpoint(out)["step"])
        assert steps[-1] == last + 1
        stopped = f"stopped after update {steps[-1]} of 100000; repeat the command to resume"
        assert stopped in capsys.readouterr().out
    assert steps[1] > steps[0] > 0
    logged = [line["step"] for line in log_lines(out, "update")]
    assert logged == list(range(1, steps[1] + 1))
    assert load_run(out).step == steps[1]
