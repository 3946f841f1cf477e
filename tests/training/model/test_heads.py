"""The heads against the papers' formulas."""

import math

import numpy as np
import pytest
import torch

from speakerlens.training.config import HeadConfig
from speakerlens.training.model.heads import AAMHead, SoftmaxHead, make_head


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_margin_is_added_to_the_true_angle(margin: float) -> None:
    torch.manual_seed(1)
    head = AAMHead(6, 4, scale=16.0)
    embedding, labels = torch.randn(5, 6), torch.tensor([0, 3, 1, 2, 2])
    logits = head.training_logits(embedding, labels, margin).detach().numpy()
    weight = head.weight.detach().numpy()
    for row, label in enumerate(labels.tolist()):
        for column in range(4):
            e, w = embedding[row].numpy().astype(np.float64), weight[column].astype(np.float64)
            angle = math.acos(float(e @ w / np.linalg.norm(e) / np.linalg.norm(w)))
            if column == label and angle + margin < math.pi:
                angle += margin
            assert logits[row, column] == pytest.approx(16.0 * math.cos(angle), abs=1e-4)


def test_penalty_is_monotonic_in_the_angle() -> None:
    head = AAMHead(2, 2, scale=1.0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    angles = torch.linspace(0.01, math.pi - 0.01, 400)
    embedding = torch.stack([angles.cos(), angles.sin()], dim=1)
    true = head.training_logits(embedding, torch.zeros(400, dtype=torch.int64), 0.3)[:, 0]
    assert (true.diff() < 0).all()


def test_inference_has_no_margin() -> None:
    head = AAMHead(6, 4, scale=16.0)
    embedding = torch.randn(3, 6)
    torch.testing.assert_close(head(embedding), head.training_logits(embedding, torch.tensor([0, 1, 2]), 0.0))


def test_softmax_is_affine() -> None:
    head = make_head(HeadConfig(kind="softmax"), 6, 4)
    embedding = torch.randn(3, 6)
    assert isinstance(head, SoftmaxHead)
    linear = head.linear
    expected = embedding @ linear.weight.T + linear.bias
    torch.testing.assert_close(head(embedding), expected)
    torch.testing.assert_close(head.training_logits(embedding, torch.tensor([0, 1, 2]), 0.2), expected)
