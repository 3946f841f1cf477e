"""A result is read back as it was written, and only for what it is of."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from speakerlens.training.checkpoint import code_revision
from speakerlens.training.errors import UserError
from speakerlens.training.study.store import digest_of, read_result, write_result


@dataclass(frozen=True)
class Inner:
    values: tuple[float, ...]
    snr_db: float | None


@dataclass(frozen=True)
class Outer:
    name: str
    pair: tuple[int, str]
    rows: tuple[tuple[int, ...], ...]
    inner: Inner | None
    many: tuple[Inner, ...]
    by_map: Mapping[str, tuple[float, ...]]


RESULT = Outer("s1", (1, "a"), ((1, 2), (3,)), None, (Inner((0.5, 1.0), None), Inner((), 5.0)), {"fused": (0.25,)})


def test_dataclasses_are_read_back(tmp_path: Path) -> None:
    write_result(tmp_path / "deep" / "result.json", (RESULT, RESULT), {"network": "x"})
    stored = read_result(tmp_path / "deep" / "result.json", tuple[Outer, ...], {"network": "x"})
    assert stored is not None
    assert stored.result == (RESULT, RESULT)
    assert stored.code_revision == code_revision()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["result.json"]


def test_nan_and_none_are_read_back(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", Inner((math.nan,), None), {})
    stored = read_result(tmp_path / "result.json", Inner, {})
    assert stored is not None
    found = stored.result
    assert found.snr_db is None
    assert math.isnan(found.values[0])


def test_result_of_another_identity_is_none(tmp_path: Path) -> None:
    assert read_result(tmp_path / "none.json", Outer, {}) is None
    write_result(tmp_path / "result.json", RESULT, {"network": "x"})
    assert read_result(tmp_path / "result.json", Outer, {"network": "y"}) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"of": {}, "found": {"name": 1}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result.json: damaged; delete it"):
        read_result(tmp_path / "result.json", Outer, {})


@pytest.mark.parametrize(
    "found",
    [
        {**asdict(RESULT), "rows": [[1, 2]]},
        {**asdict(RESULT), "by_map": []},
        {**asdict(RESULT), "many": 7},
        {"name": "s1"},
        [],
        None,
    ],
)
def test_a_result_of_another_shape_is_damaged(tmp_path: Path, found: object) -> None:
    """Also where each of its parts would be read without an error."""
    path = tmp_path / "result.json"
    write_result(path, RESULT, {})
    path.write_text(json.dumps({**json.loads(path.read_text()), "found": found}))
    with pytest.raises(UserError, match=r"result.json: damaged; delete it"):
        read_result(path, Outer, {})


def test_path_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match=r"results/result\.json: cannot be read"):
        read_result(tmp_path / "results" / "result.json", Outer, {})
    with pytest.raises(UserError, match="results: cannot be made a folder"):
        write_result(tmp_path / "results" / "result.json", RESULT, {})
    (tmp_path / "result.json").mkdir()
    with pytest.raises(UserError, match=r"result.json: cannot be read"):
        read_result(tmp_path / "result.json", Outer, {})
    with pytest.raises(UserError, match=r"result.json: cannot be written"):
        write_result(tmp_path / "result.json", RESULT, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "results"]


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert digest_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
