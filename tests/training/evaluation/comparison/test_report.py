"""The page is self-contained and well formed, escapes its values, and shows the numbers."""

import base64
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress

from speakerlens.training.evaluation.comparison.evaluate import evaluate
from speakerlens.training.evaluation.comparison.inputs import find_corpus, load_runs
from speakerlens.training.evaluation.comparison.report import write_report
from speakerlens.training.evaluation.comparison.results import Evaluation
from speakerlens.training.evaluation.comparison.sentences import caption, clear_winner, deletion_finding, finding
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
    assert all(address.startswith(("data:image/png;base64,", "data:audio/flac;base64,")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style and not re.search(r"url\(|@import", "".join(style))


def test_sounds_are_beside_the_maps(html: str, evaluated: Path) -> None:
    sounds = [address for address in Page(html).addresses if address.startswith("data:audio")]
    files = [base64.b64decode(address.partition(",")[2]) for address in sounds]
    assert files == [(evaluated / name).read_bytes() for name in ("example-corrupted.flac", "example-clean.flac")]


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
    sounds = (evaluated / "example-corrupted.flac", evaluated / "example-clean.flac")
    write_report(evaluation, replace(shown, utterance=evil), *sounds, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count(evil) == 3


def test_finding_leads_with_the_best_and_its_interval(parts: tuple[Evaluation, Example]) -> None:
    evaluation, _ = parts
    first, second = (
        replace(s, mean=mean, mean_interval=(mean - 0.05, mean + 0.05))
        for s, mean in zip(evaluation.summaries, (0.25, 0.75), strict=True)
    )
    (difference,) = evaluation.differences
    known = replace(difference, mean=0.5, interval=(0.4, 0.6))
    sentence = finding(replace(evaluation, summaries=(first, second), differences=(known,)))
    assert "act-da names the right speaker in 75.0 % of the utterances [70.0, 80.0]" in sentence
    assert "50.0 points [40.0, 60.0] more than clean" in sentence
    assert sentence.index("clean 25.0 %") < sentence.index("act-da 75.0 %")
    unknown = replace(difference, mean=0.1, interval=(-0.1, 0.3))
    assert "not told apart from clean (+10.0 points [−10.0, 30.0])" in finding(
        replace(evaluation, summaries=(first, second), differences=(unknown,))
    )


def test_deletion_is_told_as_a_change_with_its_interval(parts: tuple[Evaluation, Example]) -> None:
    evaluation, _ = parts
    means = [row for row in evaluation.deletion_means if (row.map, row.target) == ("fused", "predicted")]
    clean, act_da = (
        replace(row, change=change, change_interval=(change - 0.02, change + 0.02))
        for row, change in zip(means, (0.05, 0.01), strict=True)
    )
    sentence = deletion_finding(replace(evaluation, deletion_means=(clean, act_da)))
    assert "clean +0.05 [0.03, 0.07] (higher) and act-da +0.01 [−0.01, 0.03] (not told apart from 0)" in sentence
    assert deletion_finding(replace(evaluation, deletion_means=())) == ""


@pytest.mark.parametrize(
    ("values", "intervals", "lowest", "winner"),
    [
        ([0.5, 0.9], [(0.4, 0.6), (0.8, 1.0)], False, 1),
        ([0.5, 0.7], [(0.4, 0.6), (0.55, 0.8)], False, None),
        ([0.5, 0.9], [(0.4, 0.6), (0.8, 1.0)], True, 0),
        ([math.nan, 0.9], [(math.nan, math.nan), (0.8, 1.0)], False, None),
        ([0.9], [(0.8, 1.0)], False, None),
    ],
)
def test_no_winner_where_intervals_overlap(
    values: list[float], intervals: list[tuple[float, float]], lowest: bool, winner: int | None
) -> None:
    assert clear_winner(values, intervals, lowest) == winner


def test_bold_numbers_have_intervals_of_their_own(html: str) -> None:
    """Read the table back: a bold share's interval ends above those of its row."""
    body = html[html.index("Top-1 accuracy in percent.") :]
    rows = re.findall(r"<tr>(.*?)</tr>", body[: body.index("</table>")], re.DOTALL)[1:]
    assert len(rows) == 2 + 4
    for row in rows:
        cells = re.findall(r"<td[^>]*>(<b>)?([\d.]+)(?:</b>)?<br><span class=\"range\">([\d.]+)–([\d.]+)</span>", row)
        assert len(cells) == 2, row
        for place, (bold, _, low, _) in enumerate(cells):
            if bold:
                assert all(float(low) >= float(high) for at, (*_, high) in enumerate(cells) if at != place)


def test_headers_have_a_scope(html: str) -> None:
    headers = re.findall(r"<th\b[^>]*>", html)
    assert headers
    assert all('scope="' in header for header in headers)


def test_charts_are_inline_with_values_and_boxes(html: str) -> None:
    page = Page(html)
    # Mean and four kinds, by speaker, two of confusions, calibration, and the maps.
    assert page.tags.count("svg") >= 5 + 1 + 2 + 1 + 2
    assert page.tags.count("tspan") > 100
    assert 'id="show-v0"' in html and 'id="show-v1"' in html and 'id="show-saliency"' in html
    assert html.index("Mean of all kinds") < html.index("<b>Noise</b>")


def test_caption_says_how_the_utterance_was_chosen(parts: tuple[Evaluation, Example]) -> None:
    _, shown = parts
    text = caption(replace(shown, condition=Condition("reverb", 0.0)))
    assert shown.utterance in text
    assert "first test utterance" in text
    assert "0 dB direct-to-reverberant ratio" in text
