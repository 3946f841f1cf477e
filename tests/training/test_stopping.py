"""Early stopping: when the learning rate falls, what is said, and that a resumed run equals an uninterrupted one."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from speakerlens.training.checkpoint import load_run, read_checkpoint
from speakerlens.training.config import Config, StoppingConfig, load_config
from speakerlens.training.data.batches import Batch
from speakerlens.training.data.manifest import Corpus, write_corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.dev import DevSet
from speakerlens.training.fit import fit
from speakerlens.training.loop import Figures, Trainer
from speakerlens.training.schedule import Schedule
from speakerlens.training.study.plan import make_plan
from tests.training.test_fit import assert_same_state, log_lines

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[2] / "training" / "configs"


@pytest.fixture
def stopping(config: Config) -> Config:
    """At least 4 updates, dev accuracy after every second, at most 100 in all."""
    rule = StoppingConfig(ramp=4, patience=2, rise=1.0, decay=0.5)
    return replace(config, updates=100, stopping=rule, intervals=replace(config.intervals, dev=2, checkpoint=5))


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Accuracies that the dev set is made to give, the last of them for ever."""
    values = [10.0, 50.0, 50.5, 50.0]
    given = iter(range(10**6))

    def accuracy(*_: object) -> Mapping[str, float]:
        value = values[min(next(given), len(values) - 1)]
        return {"clean": value, "corrupted": value}

    monkeypatch.setattr(DevSet, "accuracy", accuracy)
    return values


def rates(schedule: Schedule, last: int) -> list[float]:
    return [schedule.learning_rate(step) for step in range(last)]


def test_learning_rate_stays_until_accuracy_stops_rising(stopping: Config) -> None:
    optimiser = replace(stopping.optimiser, learning_rate=1.0, final_learning_rate=0.0, warmup=0.5)
    schedule = Schedule(replace(stopping, optimiser=optimiser))
    observed = [(2, 10.0), (4, 50.0), (6, 50.5), (8, 50.0)]
    assert [schedule.observe(done, {"clean": value}, 1.0) for done, value in observed] == [False, False, False, True]
    assert (schedule.progress.decay_from, schedule.end) == (8, 12)
    assert schedule.progress.reason == "no rise"
    assert schedule.progress.best_at == 4
    assert rates(schedule, 12) == pytest.approx([0.5, *[1.0] * 7, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)
    assert not schedule.observe(10, {"clean": 0.0}, 1e9)  # decided once


def test_ramp_is_waited_for(stopping: Config) -> None:
    schedule = Schedule(replace(stopping, stopping=StoppingConfig(ramp=20, patience=1)))
    assert not any(schedule.observe(done, {"clean": 100.0}, 1.0) for done in range(2, 20, 2))
    assert schedule.observe(20, {"clean": 100.0}, 1.0)


@pytest.mark.parametrize(("seconds", "updates", "reason"), [(41.0, 100, "minutes"), (1.0, 12, "updates")])
def test_bounds_leave_time_for_the_decay(stopping: Config, seconds: float, updates: int, reason: str) -> None:
    rule = StoppingConfig(ramp=4, patience=9, decay=0.5, minutes=1.0)
    schedule = Schedule(replace(stopping, updates=updates, stopping=rule))
    assert not schedule.observe(7, {"clean": 50.0}, min(seconds, 39.0))
    assert schedule.observe(8, {"clean": 60.0}, seconds)
    assert schedule.progress.reason == reason
    assert schedule.end == 12


def test_fixed_course_knows_no_progress(config: Config) -> None:
    schedule = Schedule(config)
    assert not schedule.observe(6, {"clean": 0.0}, 1e9)
    assert not schedule.check_bounds(6, 1e9)
    assert schedule.end == config.updates


def test_run_ends_where_accuracy_stopped_rising(
    stopping: Config, corpus: Corpus, tmp_path: Path, accuracies: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies.append(52.0)
    assert fit(stopping, "da", corpus, tmp_path, CPU) == 0
    printed = capsys.readouterr().out
    assert "dev accuracy has not risen since update 4 (mean 50.0 %): the learning rate falls until update 12" in printed
    assert printed.splitlines()[-1] == (
        f"{tmp_path}: finished, 12 updates; dev accuracy 52.0 % clean, 52.0 % corrupted; it had stopped rising at "
        "update 4, before the learning rate fell"
    )
    assert load_run(tmp_path).finished
    assert [line["step"] for line in log_lines(tmp_path, "dev")] == [2, 4, 6, 8, 10, 12]
    assert fit(stopping, "da", corpus, tmp_path, CPU) == 0
    assert "da is already trained, 12 updates" in capsys.readouterr().out


def test_bound_in_minutes_ends_a_run(
    stopping: Config, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = replace(stopping.stopping or StoppingConfig(), minutes=1e-9)
    assert fit(replace(stopping, stopping=rule), "clean", corpus, tmp_path, CPU) == 0
    printed = capsys.readouterr().out
    assert "the bound in minutes is near: the learning rate falls until update 2, the last" in printed
    assert "it was still rising when the bound was reached: --minutes 2e-09 may reach more" in printed
    assert read_checkpoint(tmp_path)["step"] == 2


@pytest.mark.parametrize("dies_in", [7, 10])
def test_resumed_run_with_stopping_is_equal(
    stopping: Config,
    corpus: Corpus,
    tmp_path: Path,
    accuracies: list[float],
    monkeypatch: pytest.MonkeyPatch,
    dies_in: int,
) -> None:
    """Before and after the learning rate begins to fall."""
    by_step = {2: 10.0, 4: 50.0, 6: 50.5, 8: 50.0, 10: 50.0, 12: 50.0}
    original = Trainer.update
    done = [0]
    deadly = [-1]

    def update(self: Trainer, step: int, batch: Batch) -> Figures:
        if step in deadly:
            raise KeyboardInterrupt
        done[0] = step + 1
        return original(self, step, batch)

    def accuracy(*_: object) -> Mapping[str, float]:
        value = by_step[done[0]]
        return {"clean": value, "corrupted": value}

    monkeypatch.setattr(Trainer, "update", update)
    monkeypatch.setattr(DevSet, "accuracy", accuracy)
    fit(stopping, "act-da", corpus, tmp_path / "whole", CPU)
    deadly[0] = dies_in
    with pytest.raises(KeyboardInterrupt):
        fit(stopping, "act-da", corpus, tmp_path / "broken", CPU)
    assert read_checkpoint(tmp_path / "broken")["step"] == {7: 5, 10: 10}[dies_in]
    deadly[0] = -1
    assert fit(stopping, "act-da", corpus, tmp_path / "broken", CPU) == 0
    assert_same_state(tmp_path / "whole", tmp_path / "broken")
    first, second = (read_checkpoint(tmp_path / name)["progress"] for name in ("whole", "broken"))
    assert first | {"seconds": 0.0} == second | {"seconds": 0.0}


def test_last_printed_accuracy_is_the_last_measured(
    config: Config, corpus: Corpus, tmp_path: Path, accuracies: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(config, "clean", corpus, tmp_path, CPU) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "clean: 6/6" in printed[-2]
    assert "dev clean 50 corrupted 50" in printed[-2]  # measured after update 6; after update 3 it was 10
    assert "dev accuracy 50.0 % clean, 50.0 % corrupted; still rising, by 40.0 points since update 3" in printed[-1]
    assert "--updates 12 may reach more" in printed[-1]
    accuracies[:] = [50.0]
    assert fit(replace(config, seed=1), "clean", corpus, tmp_path / "again", CPU) == 0
    assert capsys.readouterr().out.rstrip().endswith("% corrupted; no longer rising")


def test_rising_loss_of_the_margin_is_explained(
    config: Config, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(config, "clean", corpus, tmp_path / "aam", CPU) == 0
    told = "until update 3 the margin grows from 0 to 0.1: the task becomes harder and the loss rises with it"
    assert told in capsys.readouterr().out
    assert fit(replace(config, head=replace(config.head, kind="softmax")), "clean", corpus, tmp_path / "soft", CPU) == 0
    assert "the margin grows" not in capsys.readouterr().out


def test_stopping_without_a_dev_split_is_refused(stopping: Config, corpus: Corpus, tmp_path: Path) -> None:
    without = write_corpus(tmp_path / "corpus", [clip for clip in corpus.clips if clip.split != "dev"])
    with pytest.raises(UserError, match="has no dev split, which `stopping` needs; add --set stopping=null"):
        fit(stopping, "clean", without, tmp_path / "run", CPU)


def test_study_refuses_early_stopping(stopping: Config, corpus: Corpus, tmp_path: Path) -> None:
    """Variants are compared after equal training."""
    with pytest.raises(UserError, match=re.escape("a study compares variants after the same number of updates")):
        make_plan(stopping, corpus, tmp_path, ("clean", "da"), 1)


def test_only_the_recipe_for_own_speakers_stops_early() -> None:
    early = {path.stem for path in CONFIGS.glob("*.yaml") if load_config(path).stopping is not None}
    assert early == {"speakers"}
    assert load_config(CONFIGS / "speakers.yaml", ["stopping=null"]).stopping is None
