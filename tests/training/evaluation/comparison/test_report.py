"""The page is self-contained and well formed, escapes its values, and shows the numbers."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress

from speakerlens.training.evaluation.comparison.evaluate import evaluate, find_corpus, load_runs
from speakerlens.training.evaluation.comparison.report import caption, finding, write_report
from speakerlens.training.evaluation.comparison.results import Evaluation
from speakerlens.training.evaluation.conditions import Condition
from speakerlens.training.evaluation.maps.example import Example

_VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects text and attributes; fails on a tag that is closed out of order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture(scope="module")
def html(evaluated: Path) -> str:
    return (evaluated / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parts(toy_runs: dict[str, Path]) -> tuple[Evaluation, Example]:
    runs = load_runs(list(toy_runs.values()), torch.device("cpu"))
    with Progress(disable=True) as progress:
        return evaluate(runs, find_corpus(runs, None), progress)


def test_nothing_is_fetched_and_no_script_runs(html: str) -> None:
    page = Page(html)
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style and not re.search(r"url\(|@import", "".join(style))


def test_both_figures_are_embedded(html: str, evaluated: Path) -> None:
    pictures = [base64.b64decode(address.partition(",")[2]) for address in Page(html).addresses]
    assert pictures == [(evaluated / name).read_bytes() for name in ("robustness.png", "saliency.png")]


def test_light_and_dark(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    assert '<meta name="color-scheme" content="light dark">' in html


def test_the_numbers_are_those_of_the_json_file(html: str, evaluated: Path) -> None:
    found: Any = json.loads((evaluated / "robustness.json").read_text(encoding="utf-8"))
    text = Page(html).text
    for summary in found["summaries"]:
        for share in (summary["mean"], summary["clean"], *summary["kinds"].values()):
            assert f"{100 * share:.1f}" in text
    for row in found["deletion"]:
        if row["map"] == "fused":
            assert f"{row['index']:.2f}" in text
    assert found["about"]["corpus"]["digest"] in text
    assert found["about"]["versions"]["torch"] in text
    assert "Music was left out: the test split has no" in text
    assert html.count("<tr>") > len(found["scores"])


def test_values_are_escaped(parts: tuple[Evaluation, Example], evaluated: Path, tmp_path: Path) -> None:
    evaluation, shown = parts
    evil = '<script>alert(1)</script> & "quotes"'
    evaluation = replace(evaluation, about={**evaluation.about, "command": evil}, left_out={"music": evil})
    pictures = (evaluated / "robustness.png", evaluated / "saliency.png")
    write_report(evaluation, replace(shown, utterance=evil), *pictures, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count(evil) == 3


def test_finding_lists_all_means_best_first(parts: tuple[Evaluation, Example]) -> None:
    evaluation, _ = parts
    first, second = (replace(s, mean=mean) for s, mean in zip(evaluation.summaries, (0.25, 0.75), strict=True))
    sentence = finding(replace(evaluation, summaries=(first, second)))
    assert sentence.index(f"{second.variant} 75.0 %") < sentence.index(f"{first.variant} 25.0 %")
    assert "Deletion index" in sentence
    assert "Deletion index" not in finding(replace(evaluation, deletion=()))


def test_caption_says_how_the_utterance_was_chosen(parts: tuple[Evaluation, Example]) -> None:
    _, shown = parts
    text = caption(replace(shown, condition=Condition("reverb", 0.0)))
    assert shown.utterance in text
    assert "first test utterance" in text
    assert "0 dB direct-to-reverberant ratio" in text
