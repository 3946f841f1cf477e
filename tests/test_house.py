"""The rules of the house: who may import whom, and that generated code is what its source says."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.structure import PARTS, cycles, import_graph, imported, modules, packages, top_level

ALLOWED = {
    "training": {"training", "measures"},
    "export": {"export", "training", "measures", "protos"},
    "serving": {"serving", "measures", "protos"},
    "scoring": {"scoring", "serving", "measures"},
    "measures": {"measures"},
    "protos": {"protos"},
    "speakerlens": {"speakerlens", "protos"},
}
"""What each part may import of the parts; `speakerlens` is the client and the command line."""
SHARED = {
    "speakerlens.settings",
    "speakerlens.arguments",
    "speakerlens.samples",
    "speakerlens._version",
    "speakerlens.containers",
    "speakerlens.chunks",
    "speakerlens.signatures",
    "speakerlens.decoding",
    "speakerlens.plain_samples",
    "speakerlens.decoder_pool",
    "speakerlens.decoder_process",
    "speakerlens.palette",
    "speakerlens.cuda",
    "speakerlens.processor",
    "speakerlens.page",
}
"""Leaves that every part may import."""
TORCH_SIDE = {"torch", "onnx", "onnxscript", "safetensors", "tensorboard", "yaml"}


def part_of(module: str) -> str:
    """Return the part that a module belongs to."""
    second = module.split(".")[1] if "." in module else ""
    return second if second in PARTS else "speakerlens"


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_run_one_way(part: str) -> None:
    graph = {name: targets for name, targets in import_graph().items() if part_of(name) == part}
    assert graph
    for name, targets in graph.items():
        foreign = {target for target in targets - SHARED if part_of(target) not in ALLOWED[part]}
        assert not foreign, f"{name} imports {foreign}"


def test_no_import_cycles() -> None:
    graph = import_graph()
    assert cycles(graph) == [], "files that import each other"
    assert cycles(packages(graph)) == [], "packages that import each other"


def test_serving_stays_small() -> None:
    # 75 for identification and verification; 25 for search, galleries and their stores, 6 for HTTP, 1 for the
    # sound of maps, 2 for cut graphs with shared weights and the detector's network, 1 for instances, 2 for GPUs.
    assert sum(name.startswith("speakerlens.serving") for name in modules()) <= 112


def test_shared_modules_import_nothing_of_the_project() -> None:
    graph = import_graph()
    assert {name: graph[name] - SHARED for name in SHARED} == dict.fromkeys(SHARED, frozenset())


@pytest.mark.parametrize("part", ["serving", "scoring", "measures", "protos", "speakerlens"])
def test_the_serving_side_knows_no_torch(part: str) -> None:
    for name, file in modules().items():
        if part_of(name) == part and name not in SHARED:  # which imports yaml only where YAML is read
            assert not top_level(imported(file)) & TORCH_SIDE, name


def test_serving_runs_without_the_training_side() -> None:
    absent = sorted(TORCH_SIDE | {"speakerlens.training", "speakerlens.export"})
    program = (
        f"import sys\nfor name in {absent!r}: sys.modules[name] = None\n"
        "import speakerlens.serving.server, speakerlens.scoring, speakerlens, speakerlens.cli.main\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    contracts = [Path("speakerlens") / file.relative_to(ROOT) for file in (ROOT / "protos").rglob("*.proto")]
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
