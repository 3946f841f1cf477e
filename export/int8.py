"""Rewrite the graph of `predict` so that its convolutions compute in int8.

Static quantisation: weights per channel, activations by the range that they take on calibration utterances (Jacob et
al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018), as
pairs of QuantizeLinear and DequantizeLinear around every convolution, which ONNX Runtime fuses. The front end, the
pooling and the head stay in float32: the power spectrum has too wide a range, and sums over time need more digits.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from speakerlens.export.half import FRONT_END

Feeds = Mapping[str, NDArray[Any]]

# Of the graph beside those of float32.
OPERATORS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def in_int8(content: bytes, batches: Iterable[Feeds]) -> bytes:
    """Return a graph with the same inputs and outputs whose convolutions compute in int8.

    Weights have 7 bits: the sums of products of 8 bits would overflow in processors without VNNI, so that a graph would
    compute other numbers there.

    Args:
        content: an ONNX graph.
        batches: its inputs by name, for the calibration; at least one. Padding must be masked in the graph, as in ours:
            zeros stay zeros.
    """
    model = onnx.load_from_string(content)
    _name_nodes(model)
    kept = [node.name for node in model.graph.node if node.op_type == "Conv" and node.name.startswith(FRONT_END)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        root, level = logging.getLogger(), logging.getLogger().level
        root.setLevel(logging.ERROR)  # it advises to shrink the graph first, which export did
        try:
            quantize_static(
                model,
                path,
                _Reader(batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=kept,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        finally:
            root.setLevel(level)
        quantised = onnx.load(str(path))
    for tensor in quantised.graph.initializer:
        tensor.ClearField("data_location")  # "in this file", which servers take for "in a file of its own"
    helper.set_model_props(quantised, {each.key: each.value for each in onnx.load_from_string(content).metadata_props})
    changed: bytes = quantised.SerializeToString()
    return changed


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, batches: Iterable[Feeds]) -> None:
        self._batches: Iterator[Feeds] = iter(batches)

    def get_next(self) -> Feeds | None:
        """Return the next batch, or None after the last."""
        return next(self._batches, None)


def _name_nodes(model: ModelProto) -> None:
    """Give every node a name: the calibration finds them by it."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
