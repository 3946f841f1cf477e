"""A whole study through the command line: interrupted, resumed, measured and reported."""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from speakerlens.training.checkpoint import Run, code_revision, load_run, read_checkpoint, write_checkpoint
from speakerlens.training.cli import main
from speakerlens.training.config import load_config
from speakerlens.training.data.manifest import Corpus, write_corpus
from speakerlens.training.evaluation.conditions import CLEAN
from speakerlens.training.evaluation.maps.listening import LISTENED_MAPS
from speakerlens.training.evaluation.maps.probes import Progress as Tick
from speakerlens.training.evaluation.workers import Networks
from speakerlens.training.run_log import read_log
from speakerlens.training.study.measurements import measure
from speakerlens.training.study.plan import Plan, make_plan
from speakerlens.training.study.store import Measure, MeasureStore
from tests.conftest import ROOT
from tests.training.evaluation.comparison.test_report import Page
from tests.training.toy import make_corpus, write_config

CPU = torch.device("cpu")
UPDATES = 150  # about two seconds: long enough to be interrupted
SETTINGS = (f"updates={UPDATES}", "intervals.dev=10", "intervals.checkpoint=20")
VARIANTS = ("clean", "da", "act-pair")
SEEDS = 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Without rooms, which halves the kinds of interference to be measured."""
    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder, [clip for clip in make_corpus(folder).clips if clip.kind != "rir"])


@pytest.fixture(scope="module")
def words(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("study")
    words = ["study", "--config", write_config(folder), "--corpus", corpus.root, "--out", folder / "out"]
    words += ["--seeds", SEEDS, "--variants", ",".join(VARIANTS), "--jobs", 2, "--device", "cpu"]
    return [*map(str, words), *(f"--set={setting}" for setting in SETTINGS)]


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "training", *words]


@pytest.fixture(scope="module")
def stopped(words: list[str]) -> tuple[int, str]:
    """The study, interrupted by Ctrl-C as soon as its second run is training: exit code and output."""
    log = Path(words[words.index("--out") + 1]) / "runs" / "seed-3" / "da"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command(words), stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as study:
        deadline = time.monotonic() + 300
        while len(read_log(log)) < 3 and time.monotonic() < deadline and study.poll() is None:
            time.sleep(0.02)
        study.send_signal(signal.SIGINT)
        output, _ = study.communicate(timeout=300)
    return study.returncode, output


@pytest.fixture(scope="module")
def out(words: list[str], stopped: tuple[int, str]) -> Path:
    """The folder of the study after the same command has been run again."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.chdir(ROOT)
        assert main(words) == 0
    assert "6/6 trained: seed 4, " in output.getvalue()
    assert "Top-1 accuracy under interference" in output.getvalue()
    return Path(words[words.index("--out") + 1])


@pytest.fixture(scope="module")
def plan(words: list[str], corpus: Corpus, out: Path) -> Plan:
    config = load_config(Path(words[words.index("--config") + 1]), SETTINGS)
    return make_plan(config, corpus, out, VARIANTS, SEEDS)


@pytest.fixture(scope="module")
def found(out: Path) -> Any:
    return json.loads((out / "study.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def test_ctrl_c_stops_the_runs_at_a_checkpoint(stopped: tuple[int, str]) -> None:
    code, output = stopped
    assert code == 128 + signal.SIGINT
    assert "training 6 runs, 0 of them done, 2 at a time" in output
    assert output.endswith("stopped; run the same command to resume\n")


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(plan: Plan, tmp_path: Path) -> None:
    """Bit-identical, on the same number of threads."""
    run = next(run for run in plan.runs if run.variant == "da")
    log = read_log(run.folder)
    [stopped] = [record["step"] for record in log if record["event"] == "stop" and record["step"] < UPDATES]
    assert [record["step"] for record in log if record["event"] == "start"] == [0, stopped]
    assert stopped > 0
    words = ["fit", "--config", plan.out / "config.yaml", "--seed", run.seed, "--variant", run.variant]
    words += ["--corpus", plan.corpus.root, "--out", tmp_path, "--device", "cpu"]
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2))}
    subprocess.run(command([*map(str, words)]), check=True, cwd=ROOT, timeout=300, env={**os.environ, **threads})
    other = read_log(tmp_path)
    facts = ("step", "threads", "torch", "code_revision")
    made = [{fact: line[fact] for fact in facts} for line in (*log, *other) if line["event"] == "start"]
    # The first difference between the logs says more about a cause than the final weights.
    assert figures_apart(log, other) == [], made
    ours, theirs = (read_checkpoint(folder)["network"] for folder in (run.folder, tmp_path))
    assert ours.keys() == theirs.keys()
    assert [name for name, weights in ours.items() if not torch.equal(weights, theirs[name])] == [], made


def figures_apart(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Return the updates whose figures differ, with the names of the figures."""
    timing = ("time", "utterances_per_second")
    updates = [{line["step"]: line for line in log if line["event"] == "update"} for log in (one, other)]
    assert updates[0].keys() == updates[1].keys() > set()
    return [
        (step, name)
        for step, line in updates[0].items()
        for name, figure in line.items()
        if name not in timing and figure != updates[1][step][name]
    ]


def test_every_run_is_finished(plan: Plan) -> None:
    for run in plan.runs:
        checkpoint = read_checkpoint(run.folder)
        assert (checkpoint["step"], checkpoint["variant"]) == (UPDATES, run.variant)
        assert f"seed: {run.seed}\n" in checkpoint["config"]


def rows(out: Path, name: str) -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_follow_from_the_ranks_of_every_run(out: Path, found: Any) -> None:
    accuracy = rows(out, "accuracy")
    assert len(accuracy) == SEEDS * len(VARIANTS) * len({(r["interference"], r["snr_db"]) for r in accuracy})
    means = {
        variant: [
            np.mean(
                [
                    float(row["top1"])
                    for row in accuracy
                    if row["variant"] == variant and row["seed"] == str(seed) and row["interference"] != "clean"
                ]
            )
            for seed in (3, 4)
        ]
        for variant in VARIANTS
    }
    table = found["accuracy"]
    for row in table["rows"]:
        assert row["top1"]["mean"]["mean"] == pytest.approx(np.mean(means[row["variant"]]))
        assert found["mean_by_seed"][row["variant"]] == pytest.approx(means[row["variant"]])
    compared = {(each["variant"], each["reference"]): each["top1"]["mean"] for each in table["comparisons"]}
    assert set(compared) == {("da", "clean"), ("act-pair", "clean"), ("act-pair", "da")}
    assert [each["matched"] for each in table["comparisons"]] == [["updates", "compute"], ["updates"], ["updates"]]
    assert {row["variant"]: row["work"] for row in table["rows"]} == {"clean": 1, "da": 1, "act-pair": 2}
    change = np.subtract(means["da"], means["clean"])
    half = 12.7062 * change.std(ddof=1) / np.sqrt(2)  # Student's t with one degree of freedom
    assert compared["da", "clean"]["low"] == pytest.approx(change.mean() - half, rel=1e-4, abs=1e-6)
    assert compared["da", "clean"]["high"] == pytest.approx(change.mean() + half, rel=1e-4, abs=1e-6)


def test_deletion_indices_are_averaged_over_runs(out: Path, found: Any) -> None:
    of_runs = [
        float(row["index"])
        for row in rows(out, "deletion")
        if (row["variant"], row["interference"], row["map"]) == ("da", "noise", "s4")
    ]
    assert len(of_runs) == SEEDS * 2
    mean = next(
        row["index"]["mean"]
        for row in found["deletion"]
        if (row["variant"], row["interference"], row["map"]) == ("da", "noise", "s4")
    )
    assert mean == pytest.approx(np.mean(of_runs))


def test_report_says_what_was_run(found: Any, corpus: Corpus, html: str) -> None:
    about = found["about"]
    assert about["corpus"]["digest"] == corpus.digest
    assert about["seeds"] == [3, 4]
    assert [variant["name"] for variant in about["variants"]] == list(VARIANTS)
    assert about["trained"]["code_revision"] == about["measured"]["code_revision"] == [about["code_revision"]]
    assert about["measures"].keys() > {"accuracy", "deletion", "faithfulness", "listening", "spectrum", "calibration"}
    assert all(len(variant["minutes"]) == SEEDS for variant in about["variants"])
    assert f"updates: {UPDATES}" in about["config"]
    text = Page(html).text
    for fact in (corpus.digest, about["code_revision"], about["versions"]["torch"], about["machine"]["system"]):
        assert fact in text


def test_page_is_complete_and_fetches_nothing(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    kinds = ("data:image/svg+xml;base64,", "data:image/webp;base64,", "data:audio/flac;base64,", "#")
    assert all(address.startswith(kinds) for address in page.addresses)
    examples = html[html.index('<section id="examples">') :]
    assert page.tags.count("audio") == 2 * examples.count("<h3>") == 8
    assert len(html) < 15_000_000
    anchors = [address[1:] for address in page.addresses if address.startswith("#")]
    assert len(anchors) == 12
    assert all(f'<section id="{anchor}">' in html for anchor in anchors)


def test_maps_are_measured_by_their_sound(out: Path, html: str) -> None:
    found = rows(out, "listening")
    assert {row["variant"] for row in found} == set(VARIANTS)
    assert {row["map"] for row in found} == set(LISTENED_MAPS)
    for row in found:
        for name in ("average_increase", "average_drop", "average_gain", "input_fidelity"):
            assert 0 <= float(row[name]) <= 1
        assert -1 <= float(row["faithfulness"]) <= 1
    section = html[html.index("<h3>By their sound</h3>") : html.index("<h3>Sanity check")]
    for variant in VARIANTS:
        assert f"{variant}: by the sound that each map keeps and removes" in section
    assert all(f">{head}<" in section for head in ("AI", "AD", "AG", "FF", "Fid-In"))


def test_summary_and_tables_are_in_the_page(html: str, found: Any) -> None:
    text = " ".join(Page(html).text.split())
    assert len(found["summary"]) == 6
    for group in found["summary"]:
        assert group["title"] in text
        assert group["lines"]
        assert all(line in text for line in group["lines"])
    for row in found["accuracy"]["rows"]:
        assert f"{100 * row['top1']['mean']['mean']:.1f}" in text


def test_only_runs_with_changed_weights_are_measured_again(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []

    def load(folder: Path, device: torch.device) -> Run:
        loaded.append(folder)
        return load_run(folder, device)

    monkeypatch.setattr("speakerlens.training.study.store.load_run", load)
    measure(plan, CPU, Console(quiet=True))
    assert loaded == []
    changed = plan.runs[-1].folder
    checkpoint = read_checkpoint(changed)
    checkpoint["network"]["encoder.seg_1.bias"] += 1.0
    write_checkpoint(changed, checkpoint)
    measure(plan, CPU, Console(quiet=True))
    assert set(loaded) == {changed}


def test_a_result_of_another_version_is_measured_again(plan: Plan) -> None:
    """Version of the code, or of the settings."""
    worked: list[int] = []

    def work(networks: Networks, tick: Tick) -> dict[str, Toy]:
        worked.append(len(networks))
        return {name: Toy(len(worked)) for name in networks}

    def measured(version: int, **settings: object) -> tuple[set[int], dict[str, tuple[str, ...]]]:
        store = MeasureStore(plan, CPU, Console(quiet=True))
        found = store.each(Measure("toy", version, Toy, [CLEAN], settings), work)
        return {toy.value for toy in found.values()}, store.code_revisions

    assert measured(1)[0] == measured(1)[0] == {1, 2}
    values, revisions = measured(2)
    assert values == {3, 4}
    assert revisions == {"toy": (code_revision(),)}
    assert measured(2, masking=[4, 4])[0] == {5, 6}
    assert measured(2, masking=[4, 4])[0] == {5, 6}
    for path in plan.out.glob("results/seed-3/*/toy.json"):
        path.write_text(path.read_text().replace(code_revision(), "older"))
    assert measured(2, masking=[4, 4])[1] == {"toy": tuple(sorted({code_revision(), "older"}))}


@dataclass(frozen=True)
class Toy:
    value: int


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (".lock", ".lock: cannot be written"),
        ("results", "results: cannot be made a folder"),
        ("report.html", "report.html: cannot be written"),
        ("accuracy.csv", "accuracy.csv: cannot be written"),
    ],
)
def test_path_in_the_way_is_named(
    place: str, said: str, words: list[str], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aside = out / "aside"
    (out / place).rename(aside)
    try:
        (out / place).touch() if aside.is_dir() else (out / place).mkdir()
        assert main(words) == 2
        assert said in capsys.readouterr().err
    finally:
        (out / place).unlink() if aside.is_dir() else (out / place).rmdir()
        aside.rename(out / place)


def test_missing_log_is_named_before_measuring(
    words: list[str], plan: Plan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speakerlens.training.study.cli.measure", None)
    log = plan.runs[0].folder / "log.jsonl"
    log.rename(log.with_suffix(".aside"))
    try:
        assert main(words) == 2
    finally:
        log.with_suffix(".aside").rename(log)
    assert f"{log}: the log of the training of seed 3, clean cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["dev", "test"])
def test_corpus_without_a_split_is_refused_before_training(
    split: str, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path, [clip for clip in corpus.clips if (clip.kind, clip.split) != ("utterance", split)])
    words = ["study", "--config", write_config(tmp_path), "--corpus", tmp_path, "--out", tmp_path / "out"]
    assert main([*map(str, words)]) == 2
    assert f"{tmp_path}: has no {split} utterances; a study needs some" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.process  # the study starts them
def test_failing_run_is_named_with_its_last_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path / "corpus", seconds=0.3, interference=False)
    words = ["study", "--config", write_config(tmp_path), "--corpus", corpus.root, "--out", tmp_path / "out"]
    words += ["--seeds", 1, "--variants", "da", "--device", "cpu", "--set", "interference.snr_db={noise: [0, 5]}"]
    assert main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: seed 3, da: its training ended with exit code 2; the end of ")
    assert "has no training interference of the configured kinds (noise)" in error
    assert "Traceback" not in error


def test_second_study_in_one_folder_is_refused(words: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> None:

    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(words) == 2
    assert "another study is running there" in capsys.readouterr().err


def test_another_configuration_is_refused(words: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, f"--set=updates={UPDATES + 1}"]) == 2
    error = capsys.readouterr().err
    assert f"was trained with updates {UPDATES}, not {UPDATES + 1}" in error


@pytest.mark.process  # the study starts them
def test_command_of_the_documentation_is_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    line = re.search(
        r"speakerlens (study --config training/configs/study.yaml .*)", (ROOT / "docs/training.md").read_text("utf-8")
    )
    assert line is not None
    words = shlex.split(line[1])
    words[words.index("--corpus") + 1] = "build/no such corpus"
    assert main(words) == 2
    assert "build/no such corpus: no manifest.jsonl" in capsys.readouterr().err
