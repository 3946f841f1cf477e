"""Open-set score of an embedding: the log-likelihood ratio of probabilistic linear discriminant analysis, as arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores x²·quadratic + linear·x + constant of x = (embedding / its length - mean)·transform, per speaker.

    `training.evaluation.scorer` fits the arrays, and says what they are.

    Attributes:
        mean: float32 [embedding].
        transform: float32 [embedding, size].
        quadratic: float32 [size].
        linear: float32 [speakers, size].
        constant: float32 [speakers].
    """

    mean: NDArray[np.float32]
    transform: NDArray[np.float32]
    quadratic: NDArray[np.float32]
    linear: NDArray[np.float32]
    constant: NDArray[np.float32]

    def scores(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the ratio of each speaker in nats, float64 [..., speakers], for embeddings [..., embedding]."""
        x = self._transformed(embeddings)
        ratios: NDArray[np.float64] = (
            (x**2 @ self.quadratic)[..., None] + x @ self.linear.T.astype(np.float64) + self.constant
        )
        return ratios

    def score(self, embedding: NDArray[np.floating], speaker: int) -> float:
        """Return the ratio of one speaker in nats for an embedding [embedding]."""
        x = self._transformed(embedding)
        return float(x**2 @ self.quadratic + x @ self.linear[speaker] + self.constant[speaker])

    def _transformed(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
        values = embeddings.astype(np.float64)
        units = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
        x: NDArray[np.float64] = (units - self.mean) @ self.transform.astype(np.float64)
        return x
