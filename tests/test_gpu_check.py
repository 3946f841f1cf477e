"""The check of a machine with a GPU, on a machine without one: its own logic, and what it says it skipped."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import gpu
from benchmarks.gpu_paths import fed_by_values
from benchmarks.gpu_serving import SPECS
from speakerlens.cuda import CPU, CudaError, Device
from tests.serving import toy

GRAPHS = {f"{name}{suffix}" for name in ("predict", "explain", "verify") for suffix in (".onnx", ".fp16.onnx")}


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> Device:
        raise CudaError("no NVIDIA driver is found")

    monkeypatch.setattr(gpu, "choose", refuse)
    monkeypatch.setattr(gpu, "CALLS", 1)
    monkeypatch.setattr(gpu, "BATCHES", (1, 3))


def check(bundles: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["gpu", str(bundles), "--out", str(out)])
    return gpu.main()


def test_check_without_a_gpu_says_what_it_skipped(
    tmp_path: Path, without_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write_bundle(tmp_path / "bundles", "v", 1)
    out = tmp_path / "record" / "gpu.json"
    assert check(tmp_path / "bundles", out, monkeypatch) == 0
    report = json.loads(out.read_text())
    assert (report["device"], report["gpu"], report["failed"]) == (CPU, None, [])
    assert "no NVIDIA driver is found" in report["skipped"][0]
    # Three ways of two graphs, and the last line.
    assert sum(line.endswith("no GPU") for line in report["skipped"]) == 6
    assert len(report["skipped"]) == 8
    (bundle,) = report["bundles"]
    assert all(way["error"] <= 1 for way in bundle["ways"].values())
    assert set(bundle["ways"]) == {f"{graph}, {way}" for graph in SPECS for way in ("plain", "two instances")}
    assert set(bundle["outputs"]) == GRAPHS
    for graph, errors in bundle["outputs"].items():
        assert all(error < 0.05 if "fp16" in graph else error == 0 for error in errors.values()), graph
    assert all(placed["on_cuda"] == 0 < sum(placed["on_cpu"].values()) for placed in bundle["placement"].values())
    assert bundle["recovery"]["same as before"] is True
    assert bundle["warm-up"]["shapes a graph"] > 1
    assert "skipped: everything on a GPU" in capsys.readouterr().out


def test_check_fails_where_outputs_or_batches_differ(
    tmp_path: Path, without_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.write_bundle(tmp_path / "bundles", "v", 1)
    monkeypatch.setattr(gpu, "differences", lambda *_: {"logits": 2e-4, "saliency_s1": 5e-4})
    monkeypatch.setattr(gpu, "batches", lambda *_: ({1: 1.0}, 1.0))
    assert check(tmp_path / "bundles", tmp_path / "gpu.json", monkeypatch) == 1
    failed = json.loads((tmp_path / "gpu.json").read_text())["failed"]
    # Three graphs: outputs and batches in float32, batches alone in float16, whose outputs may differ by more.
    assert len(failed) == 9
    assert sum(".fp16." in each for each in failed) == 3
    assert "v/1: explain.onnx: logits differs from the CPU's by 2.0e-04, more than 1e-04" in failed


def test_check_without_bundles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(tmp_path, tmp_path / "gpu.json", monkeypatch) == 2


def test_nan_is_an_infinite_error() -> None:
    assert gpu.relative([float("nan")], [1.0]) == float("inf")  # type: ignore[arg-type]
    assert gpu.relative([1.1], [1.0]) == pytest.approx(0.1)  # type: ignore[arg-type]


def test_nodes_that_depend_on_values_are_found(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "zero"], ["rows"], "rows"),
        helper.make_node("Mul", ["x", "x"], ["square"], "square"),
        helper.make_node("Reshape", ["square", "rows"], ["y"], "flat"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])], [zero])
    onnx.save(helper.make_model(graph), tmp_path / "graph.onnx")
    assert fed_by_values(tmp_path / "graph.onnx", {"shape", "rows", "flat", "elsewhere"}) == ["flat"]
