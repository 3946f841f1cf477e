"""The file of results and its page: written after each cell, so that a run goes on where it was stopped."""

import json
import os
import re
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.peers.page import page

PEERS = ("torch", "captum", "grad-cam", "openvino", "mosec", "litserve")


def machine_name() -> str:
    """Return a name of this machine for a file: its processor, and the number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2] for line in lines if line.startswith("model name")), "processor")
    words = re.sub(r"\(\w+\)|\bcpu\b|processor|@.*|\d+-core", " ", model.lower())
    return "-".join([*re.findall(r"[a-z0-9.]+", words), f"{os.cpu_count()}-cores"])


class Results:
    """Cells by name.

    Args:
        path: of the JSON file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self.cells: dict[str, dict[str, Any]] = found.get("cells", {})

    def add(self, name: str, cell: dict[str, Any]) -> None:
        """Add a cell, with where and when it was measured, and write the file and its page."""
        about = environment(*PEERS)
        self.cells[name] = {**cell, "date": about["date"], "commit": about["commit"], "load": about["load_average"][0]}
        content = {key: about[key] for key in ("machine", "versions")} | {"cells": dict(sorted(self.cells.items()))}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        temporary.replace(self._path)
        self._path.with_suffix(".md").write_text(page(about["machine"], about["versions"], self.cells), "utf-8")
