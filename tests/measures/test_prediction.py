"""How sure a prediction is, against torch and by hand."""

import math

import numpy as np
import pytest
import torch

from speakerlens.measures.prediction import scores


@pytest.mark.parametrize("temperature", [0.3, 1.0, 12.0])
def test_scores_are_those_of_the_softmax(temperature: float) -> None:
    logits = np.random.default_rng(1).normal(0, 4, 30).astype(np.float32)
    probabilities = (torch.from_numpy(logits).double() / temperature).softmax(dim=0)
    first, second = probabilities.topk(2).values.tolist()
    entropy = -(probabilities * probabilities.log()).sum().item()
    assert scores(logits, temperature) == pytest.approx((first, first - second, entropy), rel=1e-6)


def test_scores_at_the_ends() -> None:
    assert scores(np.zeros(8, np.float32), 1.0) == pytest.approx((1 / 8, 0, math.log(8)))
    sure = scores(np.array([-3e4, 3e4, -3e4], np.float32), 0.01)
    assert sure == (1.0, 1.0, 0.0)
    assert math.copysign(1.0, sure.entropy) == 1.0
    assert scores(np.array([5.0, 5.0]), 0.1) == pytest.approx((0.5, 0.0, math.log(2)))
