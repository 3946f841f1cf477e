"""The pages: links resolve, and every path that they name exists."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_readme import anchors

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / ".github").rglob("*.md"))]
PARTS = "serving scoring training export measures protos speakerlens".split()
FOLDERS = [*PARTS, "deploy", "benchmarks", "tests", "docs", "requirements"]
PATH = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./-]*")
SOURCES = [file for part in FOLDERS if part not in {"docs", "requirements"} for file in (ROOT / part).rglob("*.py")]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@every_page
def test_links_resolve(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text("utf-8")), target


@every_page
def test_named_paths_exist(page: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text("utf-8"))
    for code in re.findall(r"`([^`\n]+)`", text):
        for path in PATH.findall(code):
            assert (ROOT / path.rstrip(".")).exists(), path


@every_page
def test_named_modules_exist(page: Path) -> None:
    for module in re.findall(r"-m ((?:benchmarks|deploy)[\w.]*)", page.read_text("utf-8")):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_pages_named_in_comments_exist() -> None:
    named = re.compile(r"(?<![\w/])docs/[a-z0-9/_-]+\.md")
    pages = [(file, page) for file in SOURCES for page in named.findall(file.read_text("utf-8"))]
    assert pages
    for file, page in pages:
        assert (ROOT / page).is_file(), f"{file} names {page}"


def test_decisions_are_numbered_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    files = sorted(file for file in folder.glob("*.md") if file.name != "README.md")
    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    index = (folder / "README.md").read_text("utf-8")
    for file in files:
        text = file.read_text("utf-8")
        title = re.match(r"# \d+\. (.+)\n\nDate: \d{4}-\d\d-\d\d\. Status: ", text)
        assert title, file.name
        assert all(f"\n## {part}\n" in text for part in ("Context", "Decision", "Consequences")), file.name
        assert f"]({file.name}) | {title[1]} |" in index, file.name
