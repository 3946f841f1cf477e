import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from speakerlens.training.data.manifest import load_corpus, write_corpus
from tests.training.toy import write_config

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


def test_the_benchmark_of_training(toy_corpus: Path, tmp_path: Path) -> None:
    config, record = write_config(tmp_path), tmp_path / "figures" / "speeds.json"  # a folder that is not there
    words = [config, "--corpus", toy_corpus, "--variants", "clean,act-da", "--updates", "2", "--repeats", "1"]
    command = [sys.executable, SCRIPT, *words, "--device", "cpu", "--json", record]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path)
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


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "none.yaml"), "--corpus", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipes", "act-da,act"], '--recipes: there is no "act"; the recipes are da-2x, da-pair'),
        (["--recipes", ""], '--recipes: there is no ""'),
        (["--seeds", "0"], "--seeds must be at least 1, not 0"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--updates", "0"], "updates must be"),
    ],
)
def test_wrong_input_of_the_alignments_is_one_line(words: list[str], said: str, whole: Path) -> None:
    done = alignment(["--corpus", str(whole), "--config", str(whole / "toy.yaml"), *words])
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_corpus_that_recipes_cannot_be_compared_on_is_named(toy_corpus: Path, tmp_path: Path) -> None:
    for corpus, said in ((toy_corpus, "its dev split has no music"), (tmp_path, "no manifest.jsonl")):
        done = alignment(["--corpus", str(corpus)])
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_recipes_are_compared(whole: Path) -> None:
    words = ["--corpus", str(whole), "--config", str(whole / "toy.yaml"), "--recipes", "da-2x,act-da", "--updates", "2"]
    done = alignment(words)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["recipe"], line["seed"], line["updates"]) for line in lines] == [("da-2x", 0, 2), ("act-da", 0, 2)]
    for line in lines:
        kinds = [line[kind] for kind in ("noise", "music", "babble", "speaker", "reverb")]
        assert line["mean"] == pytest.approx(sum(kinds) / 5, abs=0.06)


def test_what_is_aligned_can_be_set(whole: Path) -> None:
    words = ["--corpus", str(whole), "--config", str(whole / "toy.yaml"), "--recipes", "configured,act-da"]
    (plain, other) = map(json.loads, alignment([*words, "--updates", "2"]).stdout.splitlines())
    assert {key: value for key, value in plain.items() if key != "recipe"} == {
        key: value for key, value in other.items() if key != "recipe"
    }
    done = alignment([*words, "--updates", "2", "--set", "objective.align=[s9]"])
    assert done.returncode == 2
    assert "objective.align=[s9]" in done.stderr


def test_the_maps_of_a_run_are_judged(toy_runs: dict[str, Path]) -> None:
    done = maps([str(toy_runs["act-da"]), "--utterances", "2"])
    assert done.returncode == 0, done.stderr
    tables = done.stdout.split("\n\n")
    assert [table.split(":")[0] for table in tables[:3]] == [
        "grid",
        "target, interferer, target in turn",
        "area under the probability, clean and noise 5 dB, masking 1 x 1 bins",
    ]
    assert "weights drawn anew" in tables[3]


@pytest.mark.parametrize("count", ["0", "-1"])
def test_maps_of_no_utterance_are_refused(count: str, toy_runs: dict[str, Path]) -> None:
    done = maps([str(toy_runs["act-da"]), "--utterances", count])
    assert (done.returncode, done.stderr) == (2, f"error: --utterances must be at least 1, not {count}\n")


def maps(words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT.with_name("maps.py")), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def alignment(words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT.with_name("alignment.py")), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


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
