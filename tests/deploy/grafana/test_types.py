"""The dashboards' JSON against Grafana's own packages, fetched by npm where there is one."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.catalogue import DASHBOARDS
from deploy.grafana.model import Unit
from deploy.grafana.rendering import render
from tests.deploy.grafana.check_types import program

VERSION = "11.6.0"
COMPILE = "npx tsc --noEmit --strict --skipLibCheck --moduleResolution bundler --module esnext --target es2022 check.ts"
NPM = "npm install --no-audit --no-fund --ignore-scripts --legacy-peer-deps"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Grafana's types and the compiler."""
    made = tmp_path_factory.mktemp("types")
    (made / "package.json").write_text("{}", "utf-8")
    install = f"{NPM} @grafana/schema@{VERSION} typescript@5"
    done = subprocess.run(install, shell=True, cwd=made, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        pytest.skip(f"npm cannot install @grafana/schema: {done.stderr[-500:]}")
    return made


def compiled(folder: Path, dashboards: dict[str, Any]) -> str:
    """Return the compiler's messages, empty if there are none."""
    (folder / "check.ts").write_text(program(dashboards), encoding="utf-8")
    done = subprocess.run(COMPILE, shell=True, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    return done.stdout + done.stderr


def test_dashboards_match_grafanas_types(folder: Path) -> None:
    assert compiled(folder, {stem: json.loads(render(each)) for stem, each in DASHBOARDS.items()}) == ""


def test_wrong_value_is_found(folder: Path) -> None:
    content = json.loads(render(DASHBOARDS["service"]))
    panel = next(each for each in content["panels"] if each["type"] == "timeseries")
    panel["options"]["legend"]["placement"] = "below"
    assert "LegendPlacement" in compiled(folder, {"service": content})


def test_units_are_known_to_grafana(folder: Path) -> None:
    packed = subprocess.run(
        f"npm pack @grafana/data@{VERSION} && tar xzf grafana-data-*.tgz",
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if packed.returncode:
        pytest.skip(f"npm cannot fetch @grafana/data: {packed.stderr[-500:]}")
    categories = (folder / "package/dist/esm/valueFormats/categories.mjs").read_text("utf-8")
    known = set(re.findall(r'\bid: "([^"]+)"', categories))
    assert {str(unit) for unit in Unit if not unit.startswith("suffix:")} <= known
