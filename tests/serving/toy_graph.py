"""The ONNX graphs of the toy bundles; `toy` says what they compute."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

EMBEDDING, FRAME, SHIFT = 6, 400, 160
STRIDES = (1, 2, 4, 8)
SLOW_SIZE = 256


@dataclass(frozen=True)
class Weights:
    """kernel [mel, 1, frame]; score [mel, speakers]; embedding [mel, size]."""

    kernel: NDArray[np.float32]
    score: NDArray[np.float32]
    embedding: NDArray[np.float32]


def make_graph(
    weight: Weights, kind: str, facts: dict[str, str], slow_seconds: float, nan_peak: float
) -> onnx.ModelProto:
    constants: dict[str, NDArray[Any]] = {
        "kernel": weight.kernel,
        "to_scores": weight.score,
        "score_t": np.ascontiguousarray(weight.score.T),
        "to_embedding": weight.embedding,
        "from_embedding": np.ascontiguousarray(weight.embedding.T),
        "one_axis": np.array([1], np.int64),
        "two_axis": np.array([2], np.int64),
        "frame": np.array(FRAME, np.int64),
        "shift": np.array(SHIFT, np.int64),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "limit": np.array(nan_peak, np.float32),
        "zero_float": np.array(0, np.float32),
        "slow": np.array(slow_seconds * 16000, np.int64),
        "per_trip": np.array(16, np.int64),
        "true": np.array(True),
        "matrix": np.eye(SLOW_SIZE, dtype=np.float32),
        "axes_12": np.array([1, 2], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Unsqueeze", ["audio", "one_axis"], ["channel"]),
        node("Conv", ["channel", "kernel"], ["unmasked"], strides=[SHIFT]),
        node("Sub", ["lengths", "frame"], ["n0"]),
        node("Div", ["n0", "shift"], ["n1"]),
        node("Add", ["n1", "one"], ["frames"]),
        node("Shape", ["unmasked"], ["width_1"], start=2, end=3),
        node("Squeeze", ["width_1"], ["width"]),
        node("Range", ["zero", "width", "one"], ["index"]),
        node("Unsqueeze", ["frames", "one_axis"], ["frames_2"]),
        node("Less", ["index", "frames_2"], ["valid_2"]),
        node("Cast", ["valid_2"], ["valid_f"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["valid_f", "one_axis"], ["mask"]),
        node("Mul", ["unmasked", "mask"], ["features"]),
        node("ReduceSum", ["features", "two_axis"], ["total"], keepdims=0),
        node("Cast", ["frames_2"], ["frames_f"], to=TensorProto.FLOAT),
        node("Div", ["total", "frames_f"], ["mean"]),
        # Above the limit, the square root of something negative.
        node("Abs", ["audio"], ["loud"]),
        node("ReduceMax", ["loud", "one_axis"], ["peak"], keepdims=1),
        node("Sub", ["limit", "peak"], ["room"]),
        node("Sqrt", ["room"], ["trap"]),
        node("Mul", ["trap", "zero_float"], ["nothing_or_nan"]),
        node("MatMul", ["mean", "to_embedding"], ["clean_embedding"]),
        node("Add", ["clean_embedding", "nothing_or_nan"], ["embedding"]),
        # Long audio keeps multiplying the identity.
        node("Shape", ["audio"], ["samples_1"], start=1, end=2),
        node("Squeeze", ["samples_1"], ["samples"]),
        node("Sub", ["samples", "slow"], ["over"]),
        node("Div", ["over", "per_trip"], ["over_trips"]),
        node("Max", ["over_trips", "zero"], ["trips"]),
        node("Loop", ["trips", "true", "matrix"], ["busy"], body=_busy()),
        node("ReduceMax", ["busy"], ["busy_max"], keepdims=0),
        node("Mul", ["busy_max", "zero_float"], ["nothing"]),
        node("MatMul", ["mean", "to_scores"], ["scores"]),
        node("Add", ["scores", "nothing"], ["logits"]),
    ]
    outputs = {"logits": 2, "embedding": 2} if kind != "verify" else {"embedding": 2, "score": 1}
    inputs = [
        helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", "samples"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
    ]
    if kind == "explain":
        inputs.append(helper.make_tensor_value_info("target", TensorProto.INT64, ["batch"]))
        nodes += [
            node("ArgMax", ["logits"], ["predicted"], axis=1, keepdims=0),
            node("Less", ["target", "zero"], ["unnamed"]),
            node("Where", ["unnamed", "predicted", "target"], ["explained"]),
            node("Gather", ["score_t", "explained"], ["row"]),
        ]
    if kind == "verify":
        inputs.append(helper.make_tensor_value_info("reference", TensorProto.FLOAT, ["batch", EMBEDDING]))
        nodes += [
            node("ReduceL2", ["reference", "one_axis"], ["reference_length"]),
            node("Div", ["reference", "reference_length"], ["direction"]),
            node("ReduceL2", ["embedding", "one_axis"], ["length"]),
            node("Div", ["embedding", "length"], ["unit"]),
            node("Mul", ["unit", "direction"], ["products"]),
            node("ReduceSum", ["products", "one_axis"], ["cosine"]),
            node("Squeeze", ["cosine", "one_axis"], ["plain_score"]),
            node("Add", ["plain_score", "nothing"], ["score"]),
            node("Mul", ["cosine", "unit"], ["along"]),
            node("Sub", ["direction", "along"], ["across"]),
            node("Div", ["across", "length"], ["by_embedding"]),
            node("MatMul", ["by_embedding", "from_embedding"], ["by_mean"]),
            node("Div", ["by_mean", "frames_f"], ["row"]),
        ]
    if kind != "predict":
        outputs |= {"features": 3} | {f"saliency_s{i}": 3 for i in range(1, 5)}
        nodes += [
            node("Unsqueeze", ["row", "two_axis"], ["row_3"]),
            node("Mul", ["features", "row_3"], ["product"]),
            node("Relu", ["product"], ["saliency_s1"]),
        ]
        for stage, stride in list(enumerate(STRIDES, 1))[1:]:
            constants |= {
                f"from_{stage}": np.array([0, 0], np.int64),
                f"to_{stage}": np.array([2**31, 2**31], np.int64),
                f"steps_{stage}": np.array([stride, stride], np.int64),
            }
            arguments = ["saliency_s1", f"from_{stage}", f"to_{stage}", "axes_12", f"steps_{stage}"]
            nodes.append(node("Slice", arguments, [f"saliency_s{stage}"]))
    used = {name for each in nodes for name in each.input}
    graph = helper.make_graph(
        nodes,
        "toy",
        inputs,
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *[None] * (rank - 1)])
            for name, rank in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    return model


def _busy() -> onnx.GraphProto:
    shape = [SLOW_SIZE, SLOW_SIZE]
    return helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "state"], ["next_state"]),
            helper.make_node("Identity", ["go_on"], ["go_on_then"]),
        ],
        "busy",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("go_on_then", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_state", TensorProto.FLOAT, shape),
        ],
    )
