"""Open graphs that share their weights: a bundle's graphs hold the same numbers, and so does each graph cut out of one.

ONNX Runtime rearranges the weights of convolutions for the processor when it opens a graph, so that every session has
its own. Here a file is optimised once, cut, and opened again with weights of a pool, one for each content. Without
this, a ResNet-34 of 29 MB took 222 MB for three graphs (docs/decisions/0075-pay-for-what-is-asked.md).
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from speakerlens.serving.engine.cutting import cut_graph
from speakerlens.serving.engine.onnx_messages import FLOAT, parse_model

# Smaller constants are left in the graphs.
LEAST_BYTES = 1024
# Vectors of processors are loaded fastest from multiples of this.
ALIGNMENT = 64


@dataclass(frozen=True)
class _Arranged:
    """An optimised graph, and its larger constants by name."""

    content: bytes
    constants: Mapping[str, Any]


class SharedWeights:
    """A pool of weights, for the graphs of one bundle on the CPU; those in use are kept by their sessions."""

    def __init__(self) -> None:
        self._pool: dict[tuple[tuple[int, ...], bytes], Any] = {}
        self._arranged: dict[bytes, _Arranged] = {}

    def open(
        self, content: bytes, outputs: Collection[str], make_options: Callable[[bool], Any], providers: Any
    ) -> Any:
        """Return a session for the part of a graph that computes some of its outputs.

        Args:
            content: of the file.
            outputs: names.
            make_options: returns new session options; whether the session will compute, or only optimise.
            providers: as `onnxruntime.InferenceSession` takes them; of the CPU.

        Raises:
            Exception: what ONNX Runtime raises for a graph that it cannot open.
        """
        key = hashlib.sha256(content).digest()
        if key not in self._arranged:
            self._arranged[key] = self._arrange(_optimised(content, make_options(False), providers))
        arranged = self._arranged[key]
        model = parse_model(arranged.content)
        cut_graph(model.graph, outputs)
        options = make_options(True)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # A matrix would be packed, which is another copy, for products with one row that gain nothing by it.
        options.add_session_config_entry("session.disable_prepacking", "1")
        used = []
        for tensor in model.graph.initializer:
            if tensor.name in arranged.constants:
                used.append(arranged.constants[tensor.name])
                options.add_initializer(tensor.name, used[-1])
        session = ort.InferenceSession(model.SerializeToString(), options, providers=providers, enable_fallback=0)
        # The session refers to the pool's memory. Its own copy of the graph is for a fallback, which is off.
        session.shared_weights, session._model_bytes = used, None  # noqa: SLF001
        return session

    def _arrange(self, optimised: bytes) -> _Arranged:
        model = parse_model(optimised)
        constants = {}
        for tensor in model.graph.initializer:
            if tensor.data_type == FLOAT and len(tensor.raw_data) >= LEAST_BYTES:
                constants[tensor.name] = self._shared(tuple(tensor.dims), tensor.raw_data)
        return _Arranged(optimised, constants)

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
