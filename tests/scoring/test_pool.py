"""The processes of an archive: what one that ends had in work goes to another; a recording that ends them is found."""

from pathlib import Path
from typing import Any

import pytest

from speakerlens.scoring import pool as pools
from speakerlens.scoring.inputs import SHARD_SOURCES, paths_of, shards, write_inputs
from speakerlens.scoring.pool import Pool, ScoringError
from speakerlens.scoring.worker import Plan
from tests.scoring.stand_in import stand_in

pytestmark = pytest.mark.process


def make(tmp_path: Path, names: list[str], workers: int = 2, **options: Any) -> Pool:
    (tmp_path / "list").write_text("\n".join(names))
    write_inputs(str(tmp_path / "list"), tmp_path / "inputs")
    (tmp_path / "parts").mkdir()
    plan = Plan(tmp_path / "inputs", tmp_path / "parts", Path("x.jsonl"), tmp_path, options)
    return Pool(plan, [{}] * workers, shards(tmp_path / "inputs"))


def rows_of(tmp_path: Path) -> list[str]:
    return [row for part in sorted((tmp_path / "parts").iterdir()) for row in part.read_text().splitlines()]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "work", stand_in)


def test_recordings_that_end_a_process_are_found(tmp_path: Path) -> None:
    names = [f"{number:05d}" for number in range(4 * SHARD_SOURCES + 7)]
    names[3 * SHARD_SOURCES + 5] = names[3 * SHARD_SOURCES + 9] = "deadly"
    pool = make(tmp_path, names)
    done = [each.shard.number for each in pool.run() if each]
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert rows_of(tmp_path) == [f"{name} skipped" if name == "deadly" else name for name in names]
    # Twice with its shard, perhaps as often with another that was in work beside it, and once for each recording.
    assert 4 <= pool.restarts <= 6
    assert pool.pids == []


def test_scoring_ends_when_nothing_can_be_written(tmp_path: Path) -> None:
    pool = make(tmp_path, ["one", "broken", "two"])
    with pytest.raises(ScoringError, match="the disk is full"):
        list(pool.run())
    assert pool.pids == []


def test_scoring_ends_when_no_process_begins(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="ends before it begins: signal SIGKILL"):
        list(make(tmp_path, ["one"], never=True).run())


def test_shards_have_every_path_once(tmp_path: Path) -> None:
    names = [f"folder/{number}-ä" for number in range(2 * SHARD_SOURCES + 1)]
    (tmp_path / "list").write_text("\r\n".join(names) + "\r\n\r\n")
    count, _ = write_inputs(str(tmp_path / "list"), tmp_path / "inputs")
    found = list(shards(tmp_path / "inputs"))
    assert count == len(names)
    assert [each.count for each in found] == [SHARD_SOURCES, SHARD_SOURCES, 1]
    assert [path for each in found for path in paths_of(tmp_path / "inputs", each)] == names
