"""TensorRT below ONNX Runtime: whether it is here, a graph's options with a cache of engines, whether it computes.

No GPU has run it yet (docs/decisions/0093-gpu-paths.md).
"""

import hashlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from speakerlens.cuda import TENSORRT, CudaError, check_tensorrt
from speakerlens.serving.bundle import Bundle, BundleError
from speakerlens.serving.engine.buckets import Buckets
from speakerlens.serving.engine.graphs import GraphSpec
from speakerlens.serving.errors import StartupError

log = logging.getLogger(__name__)


def find_tensorrt() -> None:
    """Load TensorRT.

    Raises:
        StartupError: it is not here.
    """
    try:
        check_tensorrt()
    except CudaError as error:
        raise StartupError(f"--tensorrt: {error}") from error


def engine_options(
    content: bytes, bundle: Bundle, spec: GraphSpec[Any, Any], folder: Path, buckets: Buckets
) -> dict[str, str]:
    """Return TensorRT's options for a graph; make the folder of its engines.

    Args:
        content: of the graph's file.
        bundle: of the graph.
        spec: which graph.
        folder: of all engines.
        buckets: the shapes of batches, for which an engine is built.

    Raises:
        StartupError: the folder cannot be written to.
    """

    def profile(rows: int, samples: int) -> str:
        # The second axis of `reference`, the only further input with one, is that of the embedding.
        axes = {1: "", 2: f"x{bundle.embedding_size}"}
        more = [f"{name}:{rows}{axes[count]}" for name, (_, count) in spec.inputs.items()]
        return ",".join([f"audio:{rows}x{samples}", f"lengths:{rows}", *more])

    profiles = {f"trt_profile_{name}_shapes": profile(*shape) for name, shape in buckets.profile.items()}
    # ONNX Runtime names an engine by the graph's nodes, without their weights: those of several bundles are the same.
    key = hashlib.sha256(content + repr((spec.outputs, sorted(profiles.items()))).encode()).hexdigest()[:32]
    engines = folder / key
    try:
        engines.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"--tensorrt {folder}: cannot be written to: {error.strerror}") from error
    cache = {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(engines)}
    return {**cache, "trt_timing_cache_enable": "True", "trt_timing_cache_path": str(folder), **profiles}


def check_computes(name: str, session: Any) -> None:
    """Check that TensorRT has nodes of a graph: ONNX Runtime leaves it out without an error.

    Args:
        name: of the graph.
        session: records where its nodes are placed.

    Raises:
        BundleError: it has none.
    """
    placed: Counter[str] = Counter()
    if hasattr(session, "get_provider_graph_assignment_info"):  # not before ONNX Runtime 1.24
        for part in session.get_provider_graph_assignment_info():
            placed[part.ep_name] += len(part.get_nodes())
    if TENSORRT not in session.get_providers() or (placed and not placed[TENSORRT]):
        raise BundleError(f"{name} cannot be opened with TensorRT: ONNX Runtime leaves it out without saying why")
    log.info("%s: nodes by provider: %s", name, dict(placed))
