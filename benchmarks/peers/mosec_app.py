"""A server with mosec: `python -m benchmarks.peers.mosec_app --port N`, settings in the environment."""

import os

import mosec
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.model import MAX_BATCH, WAIT_SECONDS, Model


class Network(mosec.Worker):  # type: ignore[misc]  # mosec has no types
    """Runs the graph; bodies are float32 samples."""

    def __init__(self) -> None:
        super().__init__()
        self._model = Model()

    def deserialize(self, data: bytes) -> NDArray[np.float32]:
        """Return the samples."""
        return np.frombuffer(data, np.float32)

    def forward(self, data: list[NDArray[np.float32]]) -> list[bytes]:
        """Return the answers."""
        return self._model(data)

    def serialize(self, data: bytes) -> bytes:
        """Return the body."""
        return data


if __name__ == "__main__":
    server = mosec.Server()
    count = int(os.environ["PEERS_INSTANCES"])
    server.append_worker(
        Network, num=count, max_batch_size=MAX_BATCH, max_wait_time=round(1e3 * WAIT_SECONDS), timeout=600
    )
    server.run()
