import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks import alignment, maps, training
from speakerlens.training.data.manifest import load_corpus, write_corpus
from tests.training.toy import write_config

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


class Done(NamedTuple):
    """What a command returned and printed."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call a benchmark's `main` in this process."""

    def call(main: Callable[[Sequence[str]], int], *words: object) -> Done:
        return Done(main([str(word) for word in words]), *capsys.readouterr())

    return call


def test_training_benchmark_prints_and_writes_speeds(toy_corpus: Path, tmp_path: Path, run: Run) -> None:
    config, record = write_config(tmp_path), tmp_path / "figures" / "speeds.json"  # a folder that is not there
    words = [config, "--corpus", toy_corpus, "--variants", "clean,act-da", "--updates", 2, "--repeats", 1]
    done = run(training.main, *words, "--device", "cpu", "--json", record)
    assert done.returncode == 0, done.stderr
    written = json.loads(record.read_text())
    assert [speed["variant"] for speed in written["speeds"]] == ["clean", "act-da"]
    for speed in written["speeds"]:
        assert f"{speed['variant']:9} {speed['rows']:5}" in done.stdout
        slower = min(speed["loader"], speed["step"])
        assert speed["ratio"] == pytest.approx(speed["together"] / slower)
        assert slower > 0
        assert speed["reading"] > 0
        assert speed["mixing"] > 0
        assert (speed["drawing"] > 0) == (speed["variant"] == "act-da")


def test_script_reports_wrong_input_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "none.yaml"), "--corpus", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipes", "act-da,act"], '--recipes: unknown recipe "act"; the recipes are da-2x, da-pair'),
        (["--recipes", ""], '--recipes: unknown recipe ""'),
        (["--seeds", "0"], "--seeds must be at least 1, not 0"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--updates", "0"], "updates must be"),
    ],
)
def test_alignment_reports_wrong_input_in_one_line(words: list[str], message: str, whole: Path, run: Run) -> None:
    done = run(alignment.main, "--corpus", whole, "--config", whole / "toy.yaml", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_alignment_needs_every_kind_in_the_dev_split(toy_corpus: Path, tmp_path: Path, run: Run) -> None:
    for corpus, message in ((toy_corpus, "its dev split has no music"), (tmp_path, "no manifest.jsonl")):
        done = run(alignment.main, "--corpus", corpus, "--config", write_config(tmp_path / "config"))
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_alignment_compares_recipes(whole: Path, run: Run) -> None:
    words = ["--corpus", whole, "--config", whole / "toy.yaml", "--recipes", "da-2x,act-da", "--updates", "2"]
    done = run(alignment.main, *words)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["recipe"], line["seed"], line["updates"]) for line in lines] == [("da-2x", 0, 2), ("act-da", 0, 2)]
    for line in lines:
        kinds = [line[kind] for kind in ("noise", "music", "babble", "speaker", "reverb")]
        assert line["mean"] == pytest.approx(sum(kinds) / 5, abs=0.06)


def test_alignment_uses_the_configured_objective(whole: Path, run: Run) -> None:
    words = ["--corpus", whole, "--config", whole / "toy.yaml", "--recipes", "configured,act-da", "--updates", "2"]
    plain, other = map(json.loads, run(alignment.main, *words).stdout.splitlines())
    assert {key: value for key, value in plain.items() if key != "recipe"} == {
        key: value for key, value in other.items() if key != "recipe"
    }
    done = run(alignment.main, *words, "--set", "objective.align=[s9]")
    assert done.returncode == 2
    assert "objective.align=[s9]" in done.stderr


def test_maps_benchmark_prints_its_tables(toy_runs: dict[str, Path], run: Run) -> None:
    done = run(maps.main, toy_runs["act-da"], "--utterances", 2)
    assert done.returncode == 0, done.stderr
    tables = done.stdout.split("\n\n")
    assert [table.split(":")[0] for table in tables[:3]] == [
        "grid",
        "target, interferer, target in turn",
        "area under the probability, clean and noise 5 dB, masking 1 x 1 bins",
    ]
    assert "randomised from the head down" in tables[3]


@pytest.mark.parametrize("count", ["0", "-1"])
def test_maps_benchmark_refuses_no_utterances(count: str, toy_runs: dict[str, Path], run: Run) -> None:
    done = run(maps.main, toy_runs["act-da"], "--utterances", count)
    assert (done.returncode, done.stderr) == (2, f"error: --utterances must be at least 1, not {count}\n")


@pytest.fixture
def whole(toy_corpus: Path, tmp_path: Path) -> Path:
    """The toy corpus with all kinds of interference, and the toy's configuration beside it."""
    clips = load_corpus(toy_corpus).clips
    music = [replace(clip, kind="music") for clip in clips if clip.kind == "noise"]
    talkers = [
        replace(clip, kind="speech", speaker=f"talker-{number}")
        for number, clip in enumerate(clip for clip in clips if clip.kind == "utterance")
    ]
    write_corpus(tmp_path, [*clips, *music, *talkers])
    write_config(tmp_path)
    return tmp_path
