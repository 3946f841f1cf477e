"""The rules of the house: who may import whom, and that generated code is what its source says."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("training", "export", "serving", "measures", "protos")
ALLOWED = {
    "training": {"training"},
    "export": {"export", "training", "measures", "protos"},
    "serving": {"serving", "measures", "protos"},
    "measures": {"measures"},
    "protos": {"protos"},
}
TORCH_SIDE = {"torch", "onnx", "onnxscript", "safetensors", "tensorboard", "yaml"}


def imports(file: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        foreign = imports(file) & (set(PACKAGES) - ALLOWED[package])
        assert not foreign, f"{file.relative_to(ROOT)} imports {foreign}"


@pytest.mark.parametrize("package", ["serving", "measures", "protos"])
def test_the_serving_side_knows_no_torch(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert not imports(file) & TORCH_SIDE, file


def test_serving_runs_without_the_training_side() -> None:
    program = (
        "import sys\n"
        f"for name in {sorted(TORCH_SIDE | {'training', 'export'})!r}: sys.modules[name] = None\n"
        "import serving.server, serving.client, serving.client.cli\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    contracts = [file.relative_to(ROOT) for file in (ROOT / "protos").rglob("*.proto")]
    assert len(contracts) == 2
    for contract in contracts:
        (tmp_path / contract).parent.mkdir(parents=True)
        (tmp_path / contract).write_bytes((ROOT / contract).read_bytes())
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([ROOT / "protos" / "generate.sh"], check=True, cwd=tmp_path, env=environment, capture_output=True)
    made = {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()} - set(contracts)
    assert len(made) == 4 * len(contracts)
    for name in made:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"{name} is stale: run `make protos`"


def test_the_base_install_has_no_torch_and_no_runtime() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    base = " ".join(project["dependencies"])
    assert "torch" not in base
    assert "onnx" not in base
    for extra, other in (("cpu", "onnxruntime-gpu"), ("gpu", "onnxruntime>=")):
        assert other not in " ".join(project["optional-dependencies"][extra])
