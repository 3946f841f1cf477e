"""The benchmark of a GPU, on a machine without one: number formats of graphs, operations counted, and a whole run."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import gpu_speed
from benchmarks.formats import operations
from speakerlens.export.half import in_half

RNG = np.random.default_rng(0)
WEIGHTS = {
    name: RNG.normal(0, 0.2, (4, channels, 3, 3)).astype(np.float32) for name, channels in {"w": 1, "v": 4}.items()
}


def small_graph() -> bytes:
    """Return a front end, two convolutions with a sum between, and pooling: x [1, 1, 8, 8] in, y [1, 4] out."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["power"], "/front_end/Mul"),
        helper.make_node("Conv", ["power", "w"], ["a"], "/stem/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "/stem/Relu"),
        helper.make_node("Conv", ["b", "v"], ["c"], "/block/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["d"], "/block/Add"),
        helper.make_node("ReduceMean", ["d", "axes"], ["y"], "/pool", keepdims=0),
    ]
    tensors = [numpy_helper.from_array(values, name) for name, values in WEIGHTS.items()]
    tensors.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(nodes, "small", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def test_half_graph_computes_the_same_but_for_rounding() -> None:
    """The front end's squares overflow float16, and stay in float32."""
    x = np.full((1, 1, 8, 8), 10.0, np.float32) + RNG.normal(0, 1, (1, 1, 8, 8)).astype(np.float32)
    contents = small_graph(), in_half(small_graph(), "fp16")
    whole, half = (ort.InferenceSession(each).run(None, {"x": x})[0] for each in contents)
    assert half.dtype == np.float32
    error = np.linalg.norm(half - whole) / np.linalg.norm(whole)
    assert 0 < error < 2e-3


@pytest.mark.parametrize(("kind", "element"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_half_graph_has_two_casts_and_half_the_weights(kind: str, element: int) -> None:
    model = onnx.load_from_string(in_half(small_graph(), kind))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node].count("Cast") == 2
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    assert {name: tensor.data_type for name, tensor in weights.items()} == {
        **dict.fromkeys(WEIGHTS, element),
        "axes": TensorProto.INT64,
    }
    for name, values in WEIGHTS.items():
        stored = numpy_helper.to_array(weights[name]).astype(np.float32)
        np.testing.assert_allclose(stored, values, rtol=2**-8)


def test_output_within_keeps_its_type() -> None:
    model = onnx.load_from_string(small_graph())
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 4, 8, 8]))
    half = onnx.load_from_string(in_half(model.SerializeToString(), "fp16"))
    onnx.checker.check_model(half, full_check=True)
    assert [value.type.tensor_type.elem_type for value in half.graph.output] == [TensorProto.FLOAT] * 2


def test_operations_of_nodes() -> None:
    conv = ("Conv", [1, 3, 8, 8], [16, 3, 3, 3], [1, 16, 8, 8])
    transposed = ("ConvTranspose", [1, 16, 8, 8], [16, 3, 2, 2], [1, 3, 16, 16])
    product = ("Gemm", [2, 5], [5, 7], [2, 7])
    assert operations(iter([conv])) == 2 * 16 * 8 * 8 * 27
    assert operations(iter([transposed])) == 2 * 16 * 8 * 8 * 12
    assert operations(iter([product, ("Relu", [9], [9], [9])])) == 2 * 2 * 5 * 7


def test_missing_bundle_is_refused(tmp_path: Path) -> None:
    assert gpu_speed.main([str(tmp_path), "--out", str(tmp_path / "x.json")]) == 2


@pytest.mark.slow
@pytest.mark.process
def test_whole_run_on_a_cpu_and_again(bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu_speed.json"
    words = [str(bundles / "act-da" / "1"), "--device", "cuda", "--out", str(out)]
    assert gpu_speed.main(words) == 0
    record = json.loads(out.read_text())
    cells = record["cells"]
    assert "checks this program alone" in record["skipped"] or record["gpu"]
    for graph in gpu_speed.GRAPHS:
        assert cells[f"graph/{graph}/fp32/1"]["errors"]["logits"] < 1e-5
        assert cells[f"graph/{graph}/fp16/1"]["errors"]["logits"] < 1e-2
        assert cells[f"graph/{graph}/fp32/1"]["tflops"] > 0
    for graph in ("predict", "S2 to S4"):
        assert cells[f"engine/{graph}/two instances/2"]["per_s"] > 0
        assert cells[f"engine/{graph}/TensorRT/1"] == {"refused": "no GPU"}
        assert cells[f"gRPC/{graph}/plain"]["of_graph"] > 0
    capsys.readouterr()
    assert gpu_speed.main(words) == 0
    assert "graph/" not in capsys.readouterr().out


def test_no_cell_begins_when_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "explain.onnx").touch()
    monkeypatch.setattr(gpu_speed, "environment", dict)
    monkeypatch.setattr(gpu_speed, "gpus", list)
    monkeypatch.setattr(gpu_speed, "cells", lambda *_: iter([("one", lambda _before: {}), ("two", lambda _before: {})]))
    words = [str(tmp_path), "--out", str(tmp_path / "record.json"), "--device", "cpu"]
    assert gpu_speed.main([*words, "--minutes=-1"]) == 0
    assert "2 of 2 cells left, run it again" in capsys.readouterr().out
    assert gpu_speed.main(words) == 0
    assert "0 of 2 cells left" in capsys.readouterr().out
