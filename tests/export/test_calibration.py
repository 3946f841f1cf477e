"""Temperature and threshold against brute force."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from export.calibration import equal_error_threshold, fit_temperature


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(true_temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 6, generator=generator)
    labels = torch.multinomial((logits / true_temperature).softmax(dim=1), 1, generator=generator).squeeze(1)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(true_temperature, rel=0.08)
    losses = {t: F.cross_entropy(logits.double() / t, labels).item() for t in np.geomspace(0.1, 10, 200)}
    best = min(losses.values())
    assert F.cross_entropy(logits.double() / found, labels).item() <= best + 1e-6


def test_threshold_balances_the_errors() -> None:
    generator = torch.Generator().manual_seed(1)
    genuine, impostor = 2 + torch.randn(3000, generator=generator), torch.randn(5000, generator=generator)
    threshold = equal_error_threshold(genuine, impostor)
    missed, accepted = (genuine < threshold).float().mean(), (impostor >= threshold).float().mean()
    assert abs(missed - accepted) < 0.005
    assert threshold == pytest.approx(1.0, abs=0.1)  # halfway between two equal bells


def test_separable_scores_have_the_threshold_between_them() -> None:
    threshold = equal_error_threshold(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([1.0, 2.0]))
    assert 2.0 < threshold <= 5.0
