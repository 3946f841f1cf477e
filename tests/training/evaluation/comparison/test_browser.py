"""The page in a real browser, as wide as a phone, a tablet and a desk: nothing is cut off, and the boxes work."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress

from speakerlens.palette import LOOKS
from speakerlens.training.evaluation.comparison.evaluate import evaluate
from speakerlens.training.evaluation.comparison.inputs import find_corpus, load_runs
from speakerlens.training.evaluation.comparison.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (360, 800, 1400)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --allow-file-access-from-files "
    "--window-size=1400,1000 --virtual-time-budget=20000 --dump-dom"
)
MEASURE = """
addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const hidden = (selector) => all(selector).every((part) => getComputedStyle(part).display === "none");
  const wide = all("main :not(svg *)").filter((part) => part.getBoundingClientRect().right > innerWidth + 1
    && !part.closest("details")).map((part) => part.outerHTML.slice(0, 80));
  const scrolled = all(".scroll").filter((part) => !part.closest("details") && part.scrollWidth > part.clientWidth + 1)
    .map((part) => part.innerText.slice(0, 60));
  const found = {width: innerWidth, page: document.documentElement.scrollWidth, wide, scrolled,
    tips: hidden(".tip"), dominated: hidden(".dominated"), first: hidden(".chart .v0"), saliency: hidden(".saliency")};
  for (const box of ["show-v0", "show-saliency", "show-dominated"]) document.getElementById(box).click();
  found.after = {dominated: hidden(".dominated"), first: hidden(".chart .v0"), second: hidden(".chart .v1"),
    saliency: hidden(".saliency")};
  found.charts = all(".chart").map((chart) => chart.getBoundingClientRect().width).filter((width) => width).length;
  parent.postMessage(JSON.stringify(found), "*");
});
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]


@pytest.fixture(scope="module", params=[2, 6], ids=["two variants", "six variants"])
def measured(
    request: pytest.FixtureRequest, toy_runs: dict[str, Path], evaluated: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Return what the browser found in the page at each width."""
    folder = tmp_path_factory.mktemp("browser")
    page = folder / "report.html"
    if request.param == 2:
        shutil.copy(evaluated / "report.html", page)
    else:
        loaded = list(load_runs(list(toy_runs.values()), torch.device("cpu")).values())
        runs = {name: loaded[place % 2] for place, name in enumerate(LOOKS)}
        with Progress(disable=True) as progress:
            evaluation, shown = evaluate(runs, find_corpus(runs, None), progress)
        write_report(evaluation, shown, evaluated / "example-corrupted.flac", evaluated / "example-clean.flac", page)
    text = page.read_text("utf-8").replace("</body>", f"<script>{MEASURE}</script></body>")
    page.write_text(text, "utf-8")
    frames = "".join(f'<iframe src="report.html" width="{w}" height="900" style="border:0"></iframe>' for w in WIDTHS)
    note = "addEventListener('message', (e) => document.getElementById('found').append(e.data + '\\n'))"
    (folder / "frames.html").write_text(
        f"<!doctype html><script>{note}</script><pre id=found></pre>{frames}", encoding="utf-8"
    )
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", f"file://{folder}/frames.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    lines = re.search(r"<pre id=\"found\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert lines is not None, done.stdout[-500:]
    found = [json.loads(line) for line in html.unescape(lines[1]).split("\n") if line]
    assert sorted(each["width"] for each in found) == sorted(WIDTHS), done.stderr[-500:]
    return found


def test_nothing_is_cut_off_at_any_width(measured: list[dict[str, Any]]) -> None:
    for found in measured:
        assert found["page"] <= found["width"], found
        assert found["wide"] == [], found
        assert found["scrolled"] == [], found


def test_boxes_show_and_hide(measured: list[dict[str, Any]]) -> None:
    for found in measured:
        assert found["tips"] and found["dominated"]
        assert not found["first"] and not found["saliency"]
        assert found["after"] == {"dominated": False, "first": True, "second": False, "saliency": True}
        assert found["charts"] > 0
