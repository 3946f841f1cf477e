"""The check of the server's ways to compute on a GPU: each gives the CPU's results, or what it lacks is said.

Of CUDA graphs, moreover, whether they may be used: nodes on the CPU are not computed again when one is replayed.
"""

import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.gpu_serving import SPECS, WAYS, configured, needs_gpu
from speakerlens.serving.bundle import Bundle, BundleError
from speakerlens.serving.engine.buckets import BatchLimits
from speakerlens.serving.engine.gpu import AGREEING
from speakerlens.serving.engine.graphs import Job
from speakerlens.serving.engine.placement import Placement
from speakerlens.serving.engine.session import GraphSession
from speakerlens.serving.errors import StartupError
from speakerlens.serving.models.loader import placement_of

# The others compute in another format, which is checked by itself.
EXACT: Final = tuple(way for way in WAYS if way != "fp16")
RATE = 16_000
ROWS, SECONDS = 4, 2
# Operators whose results depend on the shapes of what they are given, not on the values.
OF_SHAPES: Final = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class _Computed:
    """The arrays of some jobs' results, the seconds that took, whether CUDA graphs were used, and why they failed."""

    arrays: list[NDArray[Any]]
    seconds: float
    captured: bool
    failed: str


def check_ways(
    bundle: Bundle,
    device: str,
    error: Callable[[NDArray[Any], NDArray[Any]], float],
    insist: Callable[[bool, str], None],
    skip: Callable[[str], None],
) -> dict[str, Any]:
    """Return the error and the seconds of each way, by graph.

    Args:
        bundle: what to load; nothing is checked of one without a classifier.
        device: a server's device.
        error: returns how far an array is from what is expected, in units of what is allowed.
        insist: called with whether a check holds, and what fails.
        skip: called with what cannot be checked here, and why.
    """
    found: dict[str, Any] = {}
    for graph in SPECS if bundle.has_classifier else ():
        expected = _compute(bundle, graph, Placement("cpu", 0))
        for way in EXACT:
            what = f"{graph}, {way}"
            if needs_gpu(device, way):
                skip(f"{what}: no GPU")
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    placement = placement_of(configured(device, way, Path(folder)))
                    # The second finds the engines that TensorRT built for the first.
                    runs = [_compute(bundle, graph, placement) for _ in range(2)]
                except (StartupError, BundleError) as failure:
                    skip(f"{what}: {failure}")
                    continue
            errors = [error(*pair) for run in runs for pair in zip(run.arrays, expected.arrays, strict=True)]
            found[what] = {"error": float(f"{max(errors):.2g}"), "seconds": [round(run.seconds, 2) for run in runs]}
            insist(max(errors) <= 1, f"{what}: differs from the CPU by {max(errors):.1f} times what is allowed")
            for run in runs:
                insist(not run.failed, f"{what}: {run.failed}")
            if way == "CUDA graphs" and not any(run.captured or run.failed for run in runs):
                skip(f"{what}: ONNX Runtime captures nothing of this graph, the log has the reason")
    return found


def _compute(bundle: Bundle, graph: str, placement: Placement) -> _Computed:
    """Return the results of some jobs, computed so often that CUDA graphs are replayed."""
    noise = np.random.default_rng(0).normal(0, 0.05, SECONDS * RATE).astype(np.float32)
    jobs = [Job(noise[: len(noise) - 1777 * number]) for number in range(ROWS - 1)]
    begun = time.monotonic()
    session: GraphSession[Any, Any] = GraphSession(SPECS[graph], bundle, placement, BatchLimits(ROWS))
    for _ in range(AGREEING + 1):
        results = session.compute(session.prepare(jobs))
    arrays = [array for result in results for array in result.arrays()]
    failed = "; ".join(gpu.failed for gpu in session.devices if gpu.failed)
    captured = any(gpu.captures for gpu in session.devices)
    return _Computed(arrays, time.monotonic() - begun, captured, failed)


def fed_by_values(graph: Path, names: Collection[str]) -> list[str]:
    """Return those nodes of a graph, of some names, whose results depend on the values of its inputs."""
    model = onnx.load(graph)
    depends = {value.name: True for value in model.graph.input}
    for node in model.graph.node:  # in the order of computation
        fed = node.op_type not in OF_SHAPES and any(depends.get(name, False) for name in node.input)
        depends.update(dict.fromkeys(node.output, fed))
    return sorted(node.name for node in model.graph.node if node.name in names and depends[node.output[0]])
