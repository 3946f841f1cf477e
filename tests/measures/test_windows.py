"""The rule of windows: coverage, cost, what it keeps of the rule before, and the page's copy of it."""

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from speakerlens.measures.windows import Windowing, windowing_of
from speakerlens.serving.engine.buckets import BatchLimits, cpu_buckets

RATE = 16_000
COLUMNS = (160, 320, 640, 1280)
SERVED = windowing_of(3 * RATE, COLUMNS, 1680)
SHAPES = {
    "served": SERVED,
    "1 s": windowing_of(RATE, COLUMNS, 1680),
    "10 s": windowing_of(10 * RATE, COLUMNS, 1680),
    "long shortest": windowing_of(2 * RATE, COLUMNS, 6000),
    "coarse grid": windowing_of(RATE, (5120,), 400),
    "enrolment": SERVED.with_full_last,
    "toy": Windowing(length=50, hop=24, grid=8),
}
RULES = Path(__file__).parents[2] / "speakerlens" / "web" / "windows.mjs"
# Stands for samples, of which the page's rule needs the number only.
CUT = """
import { readFileSync } from "fs";
import { cut } from RULES;
const samples = (length) => ({ length, subarray: (from, to) => ({ length: to - from }) });
const row = (windows) => [windows.length, windows.reduce((sum, { start }) => sum + start, 0),
  windows.at(-1).start, windows.at(-1).samples.length, windows[0].weight, windows.at(-1).weight];
const found = JSON.parse(readFileSync(0)).map(([shape, lengths]) =>
  lengths.map((length) => row(cut(samples(length), shape))));
console.log(JSON.stringify(found));
"""


def lengths(shape: Windowing) -> list[int]:
    """0.1 to 30 s, and what lies around every multiple of the hop."""
    longest = 30 * RATE if shape.length > 50 else 1000
    step = max(1, longest // 3000)
    near = [shape.length + index * shape.hop + more for index in range(8) for more in (-1, 0, 1)]
    return sorted({*range(longest // 300, longest, step), *near})


def windows(shape: Windowing, samples: int) -> list[tuple[int, int]]:
    return [(start, min(start + shape.length, samples)) for start in shape.starts(samples)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_windows_cover_audio_of_any_length(shape: Windowing) -> None:
    """Full windows every hop, and one that overlaps them, on the grid, and is no shorter than models accept."""
    for samples in lengths(shape):
        found = windows(shape, samples)
        assert len(found) == shape.count(samples)
        assert sum(stop - start for start, stop in found) == shape.computed(samples)
        assert [start for start, _ in found[:-1]] == [index * shape.hop for index in range(len(found) - 1)]
        assert found[-1][1] == samples
        if len(found) == 1:
            assert samples <= shape.length
            continue
        start, stop = found[-1]
        assert start % shape.grid == 0
        assert found[-2][0] < start <= found[-2][1] - min(shape.grid, shape.length - shape.hop)
        assert found[-2][1] < stop
        assert shape.least <= stop - start <= shape.length


def test_7_percent_more_audio_costs_at_most_15_percent_more() -> None:
    """In samples, and as the engine pads them; of all pairs of lengths from 0.5 s on."""
    buckets = cpu_buckets(BatchLimits())
    length = np.arange(RATE // 2, 33 * RATE, 80)
    until = np.searchsorted(length, 1.07 * length + 1e-6, side="right") - 1
    for padded in (False, True):
        costs = np.array(
            [
                sum(buckets.length(stop - start) if padded else stop - start for start, stop in windows(SERVED, each))
                for each in length.tolist()
            ]
        )
        ratios = (np.maximum.accumulate(costs)[until] / costs)[length <= 30 * RATE]
        assert ratios.max() <= 1.15, f"padded: {padded}, at {length[ratios.argmax()] / RATE:.2f} s"
        assert (costs <= 2.09 * length).all()


def test_one_window_and_long_audio_are_cut_as_before() -> None:
    """Before, the last window was a full one."""
    for samples in lengths(SERVED):
        full = list(range(0, max(1, samples - SERVED.length + 1), SERVED.hop))
        last = max(0, -(-(samples - SERVED.length) // SERVED.grid) * SERVED.grid)
        before = sorted({*full, last})
        assert SERVED.with_full_last.starts(samples) == before
        if samples <= SERVED.length or samples >= 21 * RATE:
            assert SERVED.starts(samples) == before
            assert SERVED.weight(samples - last) == 1 or samples < SERVED.length
        else:
            assert SERVED.starts(samples)[:-1] == before[:-1], "as a stream's are answered before it ends"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_page_cuts_audio_of_any_length_as_the_server_does() -> None:
    shapes = {name: shape for name, shape in SHAPES.items() if not shape.full}
    wanted = [[asdict(shape), lengths(shape)] for shape in shapes.values()]
    code = CUT.replace("RULES", json.dumps(RULES.as_uri()))
    run = subprocess.run(
        ["node", "--input-type=module", "-e", code],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        check=True,
    )
    for shape, found in zip(shapes.values(), json.loads(run.stdout), strict=True):
        for samples, row in zip(lengths(shape), found, strict=True):
            starts = shape.starts(samples)
            last = samples - starts[-1]
            weight = shape.weight(last) if len(starts) > 1 else 1.0
            assert row == [len(starts), sum(starts), starts[-1], last, weight if len(starts) == 1 else 1, weight]
