"""A server with LitServe: `python -m benchmarks.peers.litserve_app --port N`, settings in the environment."""

import argparse
import base64
import os
from typing import Any

import litserve
import numpy as np
from fastapi import Response
from numpy.typing import NDArray

from benchmarks.peers.model import MAX_BATCH, WAIT_SECONDS, Model


class Network(litserve.LitAPI):  # type: ignore[misc]  # LitServe has no types
    """Runs the graph; bodies are JSON with float32 samples in base64, as LitServe reads nothing binary."""

    def setup(self, device: str) -> None:
        """Open the graph."""
        self._model = Model()

    def decode_request(self, request: dict[str, Any]) -> NDArray[np.float32]:
        """Return the samples."""
        return np.frombuffer(base64.b64decode(request["audio"]), np.float32)

    def batch(self, inputs: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Leave them a list."""
        return inputs

    def predict(self, x: list[NDArray[np.float32]]) -> list[bytes]:
        """Return the answers."""
        return self._model(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Leave them a list."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Return the body."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    port = parser.parse_args().port
    api = Network(max_batch_size=MAX_BATCH, batch_timeout=WAIT_SECONDS)
    workers = int(os.environ["PEERS_INSTANCES"])
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=600)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
