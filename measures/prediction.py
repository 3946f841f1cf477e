"""How sure a prediction is."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Scores(NamedTuple):
    """Of one prediction: the best probability, its lead over the second, and the entropy of all in nats."""

    top1_probability: float
    margin: float
    entropy: float


def scores(logits: NDArray[np.floating], temperature: float) -> Scores:
    """Scores of softmax(logits / temperature).

    Args:
        logits: finite, [classes], two classes at least.
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
