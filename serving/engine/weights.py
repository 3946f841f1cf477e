"""Cut graphs down to what is asked for, and let the graphs of a bundle share their weights.

ONNX Runtime computes every node of a graph, whatever outputs are fetched, so a graph is cut for each set of outputs.

ONNX Runtime rearranges the weights of convolutions for the processor when it opens a graph, so that every session has
its own. Here a file is optimised once, cut, and opened again with weights of a pool, one for each content. Without
this, a ResNet-34 of 29 MB took 222 MB for three graphs (docs/decisions/0082-pay-for-what-is-asked.md).
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from speakerlens.serving.engine.onnx_messages import FLOAT, parse_model

# Smaller constants are left in the graphs.
LEAST_BYTES = 1024
# Vectors of processors are loaded fastest from multiples of this.
ALIGNMENT = 64


@dataclass(frozen=True)
class _Arranged:
    """An optimised graph without its larger constants, and these by name."""

    content: bytes
    constants: Mapping[str, Any]


@dataclass(frozen=True)
class ArrangedGraph:
    """The part of a graph that computes some of its outputs, arranged for this processor; opened any number of times.

    Attributes:
        content: without the shared weights.
        weights: shared, by name.
        providers: as `onnxruntime.InferenceSession` takes them; of the CPU.
    """

    content: bytes
    weights: Mapping[str, Any]
    providers: Any

    def open(self, options: Any) -> Any:
        """Return a new session with these options; all sessions refer to the same weights.

        Raises:
            Exception: what ONNX Runtime raises for a graph that it cannot open.
        """
        model = parse_model(self.content)
        for tensor in model.graph.initializer:
            if tensor.name in self.weights:  # it is not used, and ONNX Runtime refuses a graph without it
                tensor.raw_data = self.weights[tensor.name].numpy().tobytes()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # A matrix would be packed, which is another copy, for products with one row that gain nothing by it. Int8
        # convolutions take 1.3 times as long with weights that are not packed.
        if not any(node.op_type == "QLinearConv" for node in model.graph.node):
            options.add_session_config_entry("session.disable_prepacking", "1")
        for name, value in self.weights.items():
            options.add_initializer(name, value)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=self.providers, enable_fallback=0)
        # The session refers to the memory of the weights. Its own copy of the graph is for a fallback, which is off.
        session.shared_weights, session._model_bytes = tuple(self.weights.values()), None  # noqa: SLF001
        return session


class SharedWeights:
    """A pool of weights, for the graphs of one bundle on the CPU; those in use are kept by their sessions."""

    def __init__(self) -> None:
        self._pool: dict[tuple[tuple[int, ...], bytes], Any] = {}
        self._arranged: dict[bytes, _Arranged] = {}

    def arrange(self, content: bytes, outputs: Collection[str], options: Any, providers: Any) -> ArrangedGraph:
        """Return the part of a graph that computes some of its outputs, with weights of the pool.

        Args:
            content: of the file.
            outputs: names.
            options: of a session that only optimises.
            providers: as `onnxruntime.InferenceSession` takes them; of the CPU.

        Raises:
            Exception: what ONNX Runtime raises for a graph that it cannot open.
        """
        key = hashlib.sha256(content).digest()
        if key not in self._arranged:
            self._arranged[key] = self._arrange(_optimised(content, options, providers))
        arranged = self._arranged[key]
        model = parse_model(arranged.content)
        cut_graph(model.graph, outputs)
        left = {tensor.name for tensor in model.graph.initializer}
        used = {name: value for name, value in arranged.constants.items() if name in left}
        return ArrangedGraph(model.SerializeToString(), used, providers)

    def _arrange(self, optimised: bytes) -> _Arranged:
        model = parse_model(optimised)
        constants = {}
        for tensor in model.graph.initializer:
            if tensor.data_type == FLOAT and len(tensor.raw_data) >= LEAST_BYTES:
                constants[tensor.name] = self._shared(tuple(tensor.dims), tensor.raw_data)
                tensor.ClearField("raw_data")
        return _Arranged(model.SerializeToString(), constants)

    def _shared(self, shape: tuple[int, ...], raw: bytes) -> Any:
        key = shape, hashlib.sha256(raw).digest()
        if key not in self._pool:
            self._pool[key] = ort.OrtValue.ortvalue_from_numpy(_aligned(np.frombuffer(raw, "<f4")).reshape(shape))
        return self._pool[key]


def _optimised(content: bytes, options: Any, providers: Any) -> bytes:
    """Return a graph as ONNX Runtime rearranges it for this processor."""
    with os.fdopen(os.memfd_create("graph"), "rb") as file:
        options.optimized_model_filepath = f"/proc/self/fd/{file.fileno()}"
        ort.InferenceSession(content, options, providers=providers, enable_fallback=0)
        return file.read()


def _aligned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a copy that begins at a multiple of ALIGNMENT."""
    room = np.empty(values.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + values.nbytes].view(np.float32)
    copy[:] = values
    return copy


def cut(content: bytes, outputs: Collection[str]) -> bytes:
    """Return a graph with these outputs alone, those of them that it has; its inputs stay.

    The nodes that remain are unchanged, so that they compute the same numbers.

    Raises:
        ValueError: `content` is not an ONNX graph.
    """
    model = parse_model(content)
    if {value.name for value in model.graph.output} <= set(outputs):
        return content
    cut_graph(model.graph, outputs)
    left: bytes = model.SerializeToString()
    return left


def cut_graph(graph: Any, outputs: Collection[str]) -> None:
    """Do so in place, to a `GraphProto`."""
    makers = {name: node for node in graph.node for name in node.output if name}
    needed: set[str] = set()
    waiting = [value.name for value in graph.output if value.name in outputs]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in makers:
            waiting += [*makers[name].input, *_outer_names(makers[name])]
    _keep(graph.output, lambda value: value.name in outputs)
    _keep(graph.node, lambda node: bool(needed.intersection(node.output)))
    _keep(graph.initializer, lambda tensor: tensor.name in needed)


def _outer_names(node: Any) -> list[str]:
    """Return what the subgraphs of a node may take from outside: the inputs of their nodes."""
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [
        name
        for graph in graphs
        for inner in graph.node
        for name in [*inner.input, *_outer_names(inner), *(value.name for value in graph.output)]
    ]


def _keep(repeated: Any, wanted: Callable[[Any], bool]) -> None:
    """Leave only the wanted elements of a repeated field."""
    for index in reversed(range(len(repeated))):
        if not wanted(repeated[index]):
            del repeated[index]
