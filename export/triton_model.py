"""Model of Triton's Python backend for one graph of a bundle: pads requests of any length together.

This file is copied into a model repository, and imports nothing of the project. It needs the package onnxruntime.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

STEP = 8_000  # lengths are rounded up to half seconds, so that a GPU sees few shapes


class TritonPythonModel:
    """The model, by the name that Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph, on the GPU that Triton chose or on the CPU."""
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        providers: list[Any] = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            options = {"device_id": args["model_instance_device_id"], "cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, ("CUDAExecutionProvider", options))
        options = onnxruntime.SessionOptions()
        # The name that Triton's own backend for ONNX Runtime has for it; 0 is one thread per core.
        threads = config["parameters"].get("intra_op_thread_count", {"string_value": "0"})
        options.intra_op_num_threads = int(threads["string_value"])
        # Instances that spin for their threads take the cores from each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=providers)
        self._inputs = [each["name"] for each in config["input"]]
        self._outputs = [each["name"] for each in config["output"]]
        manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
        front_end = manifest["front_end"]
        self._frame = front_end["frame_length"], front_end["frame_shift"]
        self._strides = {"features": 1, **{f"saliency_{each['name']}": each["stride"] for each in manifest["stages"]}}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response for each request, computed together."""
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(each, name).as_numpy() for name in self._inputs}
            for each in requests
        ]
        longest = max(each["audio"].shape[1] for each in feeds)
        padded = -(-longest // STEP) * STEP
        merged = {
            name: np.concatenate([_padded(each[name], padded) if name == "audio" else each[name] for each in feeds])
            for name in self._inputs
        }
        for name, values in merged.items():
            if name != "audio" and values.ndim == 2 and values.shape[1] == 1:
                merged[name] = values[:, 0]
        outputs = dict(zip(self._outputs, self._session.run(self._outputs, merged), strict=True))
        responses, row = [], 0
        for each in feeds:
            rows, samples = each["audio"].shape
            tensors = [
                pb_utils.Tensor(name, self._cut(name, values[row : row + rows], samples))
                for name, values in outputs.items()
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            row += rows
        return responses

    def _cut(self, name: str, values: Any, samples: int) -> Any:
        """Return the values of a request, without the columns of the padding."""
        if name in self._strides:
            frames = 1 + (samples - self._frame[0]) // self._frame[1]
            return np.ascontiguousarray(values[..., : -(-frames // self._strides[name])])
        return values[:, None] if values.ndim == 1 else values


def _padded(audio: Any, samples: int) -> Any:
    return np.pad(audio, ((0, 0), (0, samples - audio.shape[1])))
