"""`speakerlens score`: complete tables, whatever ends a process, and names for what is bad."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from speakerlens.cli.main import main
from speakerlens.scoring.inputs import SHARD_SOURCES
from tests.conftest import ROOT
from tests.scoring.conftest import GOOD

Listed = Callable[[list[Path | str]], Path]


def command(source: Path | str, out: Path, toys: Path, *flags: object) -> list[str]:
    words = [
        sys.executable,
        "-m",
        "speakerlens",
        "score",
        source,
        "--out",
        out,
        "--bundle",
        toys,
        "--workers=1",
        *flags,
    ]
    return [*map(str, words), "--device=cpu"]


Score = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Score:
    """Run the command in this process, which starts its workers."""

    def run(source: Path | str, out: Path, toys: Path, *flags: object, stdin: bytes = b"") -> Any:
        words = command(source, out, toys, *flags)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(words[3:])
        out_text, err = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, out_text, err)

    return run


def test_folder_is_scored_and_bad_files_are_named(score: Score, toys: Path, archive: Path, tmp_path: Path) -> None:
    out, journal = tmp_path / "x.parquet", tmp_path / "score.log"
    done = score(archive, out, toys, "--workers=2", "--log", journal)
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["recordings"], summary["rows"], summary["failed"]) == (GOOD + 4, 2 * GOOD + 4, 4)
    table = pyarrow.parquet.read_table(out).to_pylist()
    assert len(table) == summary["rows"]
    bad = {Path(row["path"]).name: row for row in table if row["code"]}
    assert set(bad) == {"empty.wav", "text.flac", "short.wav", "silent.wav"}
    assert len({row["path"] for row in table}) == GOOD + 4
    for text in (done.stderr, journal.read_text()):
        assert f"{GOOD + 4} of {GOOD + 4} recordings (100.0 %), 4 failed" in text
        assert all(f"{name}: INVALID_ARGUMENT: " in text for name in bad)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["score.log", "x.parquet", "x.parquet.json"]
    again = score(archive, out, toys)
    assert (again.returncode, json.loads(again.stdout)["rows"]) == (3, summary["rows"])
    assert "is complete already" in again.stderr
    other = score(archive, out, toys, "--no-embeddings")
    assert other.returncode == 2
    assert "is there already, of other recordings or options" in other.stderr
    (archive / "day-3").mkdir()
    shutil.copy(next(archive.rglob("0*.wav")), archive / "day-3" / "new.wav")
    other = score(archive, out, toys)
    shutil.rmtree(archive / "day-3")
    assert (other.returncode, "of other recordings" in other.stderr) == (2, True)


def test_lists_and_formats_have_the_same_rows(
    score: Score, toys: Path, archive: Path, tmp_path: Path, listed: Listed
) -> None:
    paths: list[Path | str] = sorted(archive.rglob("0*.wav"))
    odd = tmp_path / "two\nlines.wav"
    odd.write_bytes(Path(paths[0]).read_bytes())
    lines, separated = tmp_path / "x.jsonl", tmp_path / "x.csv"
    assert score(listed(paths), lines, toys / "clean/1").returncode == 0
    stdin = b"\0".join(map(os.fsencode, [*paths, odd]))
    assert score("-", separated, toys / "clean/1", stdin=stdin).returncode == 0
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    with separated.open(newline="") as content:
        others = list(csv.DictReader(content))
    assert [row["path"] for row in rows] == list(map(str, paths))
    assert [row["path"] for row in others] == [*map(str, paths), str(odd)]
    for row, other in zip(rows, others, strict=False):
        assert float(other["score"]) == pytest.approx(row["score"], rel=1e-6)
        # As a vector: an element near zero changes by more than that with what else is in the batch.
        ours, theirs = np.array(row["embedding"]), np.array(json.loads(other["embedding"]))
        assert np.linalg.norm(theirs - ours) <= 1e-5 * np.linalg.norm(ours)
        assert float(other["evidence_speech_s"]) == pytest.approx(row["evidence"]["speech_s"])


def children(pid: int) -> list[int]:
    """Workers of an archive: processes started by multiprocessing."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "spawn_main"], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_worker_and_killed_run_lose_nothing(
    score: Score, toys: Path, archive: Path, tmp_path: Path, listed: Listed
) -> None:
    good = sorted(archive.rglob("0*.wav"))
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)  # whoever reads it waits
    paths: list[Path | str] = [*good[:5], *["missing.wav"] * 3 * SHARD_SOURCES, pipe, *good[5:]]
    source, out = listed(paths), tmp_path / "x.jsonl"
    parts = tmp_path / "x.jsonl.work" / "parts"
    words = command(source, out, toys / "clean/1", "--no-embeddings")

    def done() -> set[str]:
        return {file.name for file in parts.glob("[0-9]*")}

    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        wait_for(lambda: len(done()) == 3, process)
        [first] = children(process.pid)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: children(process.pid) not in ([], [first]), process)
        [second] = children(process.pid)
        process.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{second}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{second}").exists(), "a worker survives its parent"
    kept = {name: (parts / name).stat().st_mtime_ns for name in done()}
    assert len(kept) == 3
    assert not out.exists()
    other = score(source, out, toys / "clean/1")
    assert other.returncode == 2
    assert "was begun with another value of embeddings" in other.stderr
    pipe.unlink()
    pipe.write_bytes(good[0].read_bytes())
    assert kept == {name: (parts / name).stat().st_mtime_ns for name in kept}
    again = score(source, out, toys / "clean/1", "--no-embeddings")
    assert again.returncode == 3, again.stderr
    assert f"going on: {len(paths)} recordings" in again.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["path"] for row in rows] == list(map(str, paths))
    assert [row["code"] for row in rows if row["path"] != "missing.wav"] == [None] * (len(good) + 1)
    assert json.loads(again.stdout)["recordings"] == len(paths)


@pytest.mark.parametrize(
    ("source", "words"),
    [("nothing", "nothing: No such file"), ("empty", "empty; there must be"), ("audio", "a WAV file, where a list")],
)
def test_wrong_source_exits_with_2(
    score: Score, toys: Path, archive: Path, tmp_path: Path, source: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "audio").write_bytes(next(archive.rglob("0*.wav")).read_bytes())
    done = score(tmp_path / source, tmp_path / "x.jsonl", toys)
    assert done.returncode == 2
    assert words in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["audio", "empty"]
