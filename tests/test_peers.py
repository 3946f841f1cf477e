"""The comparison with peers: its arithmetic, its page, and a short run of the whole program."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.measuring import Sample, exponent, interleave, others_share, ratio, spread, summary
from benchmarks.peers.page import page
from benchmarks.peers.results import Results
from tests.conftest import ROOT


def test_ratio_is_the_median_of_rounds() -> None:
    """A round in which all were slow does not count more than others."""
    assert ratio([2.0, 40.0, 4.0], [1.0, 20.0, 1.0]) == 2.0


def test_exponent_of_growth() -> None:
    assert exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1.0)
    assert exponent([1, 10, 100], [3, 300, 30_000]) == pytest.approx(2.0)
    assert exponent([30, 1000], [5, 5]) == pytest.approx(0.0)


def test_spread_is_the_quartiles_over_the_median() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert spread([1.0, 9.0]) == 0.0


@pytest.mark.parametrize(
    ("wall", "machine", "own", "share"),
    [
        (10.0, 12.0, 12.0, 0.0),
        (10.0, 12.0, 10.0, 0.1),
        (10.0, 9.9, 10.0, 0.0),
        (10.0, 40.0, 0.0, 1.0),
        (0.0, 1, 0, 0.0),
    ],
)
def test_share_of_others(wall: float, machine: float, own: float, share: float) -> None:
    assert others_share(wall, machine, own, cores=2) == pytest.approx(share)


def test_ways_take_turns_and_stop_after_the_time() -> None:
    order = []

    def way(name: str) -> Sample:
        order.append(name)
        return Sample(1.0, 0.5)

    ways = {name: lambda name=name: way(name) for name in "ab"}
    found = interleave(ways, rounds=9, seconds=5.0)
    assert "".join(order) == "baabba"
    assert {name: len(samples) for name, samples in found.items()} == {"a": 3, "b": 3}
    figures = summary({"a": [Sample(2.0, 1.0)], "b": [Sample(6.0, 3.0)]}, "a")
    assert figures["b"] == {"cpu_ms": 3000, "wall_ms": 6000, "ratio": 3.0, "spread": 0.0}


CELLS: dict[str, dict[str, Any]] = {
    "explaining/small/batch 1/1 thread": {
        "ways": {
            "ours, S1 to S4": {"cpu_ms": 9.5, "wall_ms": 9.6, "ratio": 1.0, "spread": 0.01},
            "PyTorch, autograd, bf16": {"cpu_ms": 19, "wall_ms": 19, "ratio": 2.0, "spread": 0.01, "error": 0.02},
        },
        "skipped": {"OpenVINO, f32": "not installed (No module named 'openvino')"},
        "others": 0.2,
        "disturbed": True,
    },
    "serving/small/predict": {
        "callers": {
            "8": {
                "servers": {
                    "ours": {"per_s": 200, "cpu_ms": 8, "p50_ms": 40, "p99_ms": 60, "answers": 9, "speed_ratio": 1.0},
                    "Triton": {"errors": ["3 of them", "UNAVAILABLE: x"]},
                },
                "others": 0.0,
                "disturbed": False,
            }
        },
        "skipped": {},
    },
    "growth/seconds": {
        "sizes": [1, 10],
        "costs": {"predict, ms": {"values": [4, 40], "exponent": 1.0}},
        "disturbed": False,
    },
    "training/clean": {"ways": {"ours": {"per_s": 50, "per_cpu_s": 30, "ratio": 1.5}}, "disturbed": False},
}


def test_page_has_tables_marks_and_what_was_skipped() -> None:
    text = page("x86_64, 2 cores", {"python": "3.11"}, CELLS)
    assert "| small, batch 1, 1 thread † | 9.5 (1.00) | 19 (2.00) |" in text
    assert "Maps that differ: PyTorch, autograd, bf16 0.02." in text
    assert "| small, predict | 8 | ours | 200 | 1.00 | 40 | 60 | 8 |" in text
    assert "| small, predict | 8 | Triton | 3 of them; UNAVAILABLE: x |" in text
    assert "| seconds | predict, ms | 1 · 10 | 4 · 40 | 1.00 |" in text
    assert "| clean | ours | 50 | 30 | 1.50 |" in text
    assert "- OpenVINO, f32: not installed (No module named 'openvino')" in text


def test_results_are_kept_by_cell(tmp_path: Path) -> None:
    for name in ("serving/small/predict", "training/clean"):
        Results(tmp_path / "m.json").add(name, CELLS[name])
    found = Results(tmp_path / "m.json").cells
    assert list(found) == ["serving/small/predict", "training/clean"]
    assert found["training/clean"]["ways"] == CELLS["training/clean"]["ways"]
    assert found["training/clean"].keys() >= {"date", "commit", "load"}
    assert "## 4. Training" in (tmp_path / "m.md").read_text()


@pytest.mark.slow
def test_quick_run_measures_and_goes_on(bundles: Path, tmp_path: Path) -> None:
    """Peers that are not installed are skipped, so that this passes with the development packages alone."""
    words = [sys.executable, "-m", "benchmarks.peers", "--bundles", str(bundles), "--variant", "act-da", "--quick"]
    words += ["--build", str(tmp_path / "build"), "--out", str(tmp_path / "m.json"), "--only", "explaining/small"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "explaining/small/batch 1/1 thread:" in done.stdout
    (cell,) = json.loads((tmp_path / "m.json").read_text())["cells"].values()
    assert cell["ways"]["ours, S1 to S4"]["ratio"] == 1.0
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout == ""
