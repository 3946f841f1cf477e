"""Rewrite a graph so that its convolutions, and what lies between them, compute in float16 or bfloat16.

The front end, the pooling and the head stay in float32: the power spectrum overflows float16, and sums over time lose
too much in either.
"""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
CONVOLUTIONS = ("Conv", "ConvTranspose")
# These follow the type of what they are given.
BETWEEN = ("Relu", "Add", "Mul", "Slice")
FRONT_END = "/front_end"


def in_half(content: bytes, kind: str) -> bytes:
    """Return an ONNX graph with the same inputs and outputs that computes in `kind` (fp16, bf16)."""
    model = onnx.load_from_string(content)
    graph, half = model.graph, HALF[kind]
    chosen = _chosen(graph)
    made_half = {name for index in chosen for name in graph.node[index].output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    elsewhere = {name for index, node in enumerate(graph.node) if index not in chosen for name in node.input}
    nodes: list[NodeProto] = []
    casts: dict[tuple[str, int], str] = {}

    def cast(name: str, to: int) -> str:
        if (name, to) not in casts:
            casts[name, to] = f"{name}/{TensorProto.DataType.Name(to)}"
            nodes.append(helper.make_node("Cast", [name], [casts[name, to]], to=to))
        return casts[name, to]

    converted: set[str] = set()
    for index, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            if not name or (node.op_type == "Slice" and place > 0):
                continue
            if index in chosen and name in weights and name not in elsewhere:
                if name not in converted:
                    _convert(weights[name], half)
                    converted.add(name)
            elif index in chosen and name not in made_half:
                node.input[place] = cast(name, half)
            elif index not in chosen and name in made_half:
                node.input[place] = cast(name, TensorProto.FLOAT)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    if kind == "bf16":  # the first version whose convolutions take it
        for each in model.opset_import:
            if not each.domain:
                each.version = max(each.version, 22)
    changed: bytes = model.SerializeToString()
    return changed


def _chosen(graph: onnx.GraphProto) -> set[int]:
    """Return the indices of the nodes to compute in half precision; those between must be fed by a chosen one."""
    chosen: set[int] = set()
    made: set[str] = set()
    outputs = {value.name for value in graph.output}  # these keep their type
    for index, node in enumerate(graph.node):  # in the order of computation
        if node.name.startswith(FRONT_END) or outputs.intersection(node.output):
            continue
        fed = any(name in made for name in (node.input[:1] if node.op_type == "Slice" else node.input))
        if node.op_type in CONVOLUTIONS or (node.op_type in BETWEEN and fed):
            chosen.add(index)
            made.update(node.output)
    return chosen


def _convert(tensor: TensorProto, half: int) -> None:
    values = numpy_helper.to_array(tensor).astype(np.float32)
    if half == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
        return
    # Rounded to nearest, ties to even: the upper half of a float32.
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    shape, name = list(tensor.dims), tensor.name
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.raw_data = name, half, rounded.tobytes()
    tensor.dims.extend(shape)
