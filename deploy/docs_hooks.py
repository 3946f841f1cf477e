"""Hooks of mkdocs: the tutorial and the command line as pages, and names instead of links out of docs/."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from speakerlens.cli.main import CLIENT, main

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of other files."""
    files.append(File.generated(config, "tutorial.md", content=tutorial()))
    files.append(File.generated(config, "command-line.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Write the name of a file outside of docs/ instead of a link to it."""
    out = r"\.\./" * (1 + page.file.src_uri.count("/"))
    markdown = re.sub(rf"\[([^\]]+)\]\({out}([^)]*)\)", r"\1 (`\2`)", markdown)
    return markdown.replace("](tutorial.ipynb)", "](tutorial.md)")


def tutorial() -> str:
    """Return the notebook as a page."""
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text("utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts)


def command_line() -> str:
    """Return the help of every command that calls a server, and of the program."""
    parts = ["# Command line", f"```text\n{help_of()}\n```"]
    parts += [f"## speakerlens {name}\n\n```text\n{help_of(name)}\n```" for name in CLIENT]
    return "\n\n".join(parts)


def help_of(*words: str) -> str:
    """Return the help of a command."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return output.getvalue().strip()
