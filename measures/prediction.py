"""Confidence of a prediction."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Scores(NamedTuple):
    """Top-1 probability, its margin over the second, and the entropy of all probabilities in nats."""

    top1_probability: float
    margin: float
    entropy: float


def scores(logits: NDArray[np.floating], temperature: float) -> Scores:
    """Return the scores of softmax(logits / temperature).

    Args:
        logits: finite, [classes], at least two classes.
        temperature: above 0.
    """
    scaled = np.asarray(logits, np.float64) / temperature
    shifted = scaled - scaled.max()
    weights = np.exp(shifted)
    total = weights.sum()
    probabilities = weights / total
    second, first = np.partition(probabilities, -2)[-2:]
    entropy = np.log(total) - (probabilities * shifted).sum()
    return Scores(float(first), float(first - second), max(float(entropy), 0.0))
