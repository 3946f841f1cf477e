"""The graph that the servers in Python serve: a batch of waveforms in, one message of bytes for each out."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from speakerlens.serving.engine.weights import cut

MAX_BATCH = 8
WAIT_SECONDS = 0.002
"""Limits of a batch, for every server alike."""

OUTPUTS = {
    "predict": ("logits", "embedding"),
    "explain": ("logits", "embedding", "features", "saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4"),
    "fused": ("logits", "embedding", "features", "saliency_s2", "saliency_s3", "saliency_s4"),
}
"""What is asked for: by kind, the outputs of the graph."""

FILES = {"predict": "predict.onnx", "explain": "explain.onnx", "fused": "explain.onnx"}
BUNDLE, KIND, THREADS = "PEERS_BUNDLE", "PEERS_KIND", "PEERS_THREADS"
"""Variables of the server programs."""


def graph_of(bundle: Path, kind: str) -> bytes:
    """Return the graph with the outputs of a kind alone."""
    return cut((bundle / FILES[kind]).read_bytes(), OUTPUTS[kind])


class Model:
    """A graph, open with the settings in the environment."""

    def __init__(self) -> None:
        kind = os.environ[KIND]
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ[THREADS])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        content = graph_of(Path(os.environ[BUNDLE]), kind)
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._explains = kind != "predict"
        self._outputs = list(OUTPUTS[kind])

    def __call__(self, rows: list[NDArray[np.float32]]) -> list[bytes]:
        """Return the outputs of each waveform, one after the other; waveforms have the same length."""
        audio = np.stack(rows)
        feeds: dict[str, Any] = {"audio": audio, "lengths": np.full(len(rows), audio.shape[1])}
        if self._explains:
            feeds["target"] = np.full(len(rows), -1)
        outputs = self._session.run(self._outputs, feeds)
        return [b"".join(values[row].tobytes() for values in outputs) for row in range(len(rows))]
