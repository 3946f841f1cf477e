"""Curves of a linear score, whose true importance is known; fill and order against loops."""

import numpy as np
import pytest
import torch

from speakerlens.training.evaluation.maps.curves import area, curves, local_mean, order

SHARES = (0.0, 0.25, 0.5, 1.0)


def test_fill_is_the_local_mean() -> None:
    features = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    found = local_mean(features, (3, 5))
    for row in range(6):
        for column in range(10):
            around = features[max(0, row - 1) : row + 2, max(0, column - 2) : column + 3]
            assert float(found[row, column]) == pytest.approx(float(around.mean()), abs=1e-6)


def test_order_goes_down_and_breaks_ties_at_random() -> None:
    saliency = torch.zeros(8, 8)
    saliency[3, 4], saliency[5, 6] = 2.0, 1.0
    first, again = order(saliency, (1, 1), 0), order(saliency, (1, 1), 1)
    for places in (first, again):
        assert (int(places[3, 4]), int(places[5, 6])) == (0, 1)
        assert sorted(places.flatten().tolist()) == list(range(64))
    assert not torch.equal(first, again)
    early = (first >= 2) & (first < 20)  # ties are not taken from one side first
    assert early[:4].any()
    assert early[4:].any()


def test_cells_are_ordered_by_their_means() -> None:
    saliency = torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    places = order(saliency, (4, 4), 0)
    cells = {(r, c): saliency[4 * r : 4 * r + 4, 4 * c : 4 * c + 4] for r in range(2) for c in range(3)}
    first = 0
    for r, c in sorted(cells, key=lambda key: -float(cells[key].mean())):
        inside = places[4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
        assert sorted(inside.flatten().tolist()) == list(range(first, first + inside.numel()))
        first += inside.numel()


def test_curves_of_a_linear_score_are_sums_of_its_terms() -> None:
    """The score is sum(w x): deleting a bin takes w (x - fill) from it, so the true importance is known."""
    generator = torch.Generator().manual_seed(0)
    weight, features, fill = (torch.randn(8, 10, generator=generator, dtype=torch.float64) for _ in range(3))

    def score(inputs: torch.Tensor) -> torch.Tensor:
        total = (weight * inputs).sum(dim=(1, 2))
        return torch.stack([total, 2 * total], dim=1)

    terms = weight * (features - fill)
    places = [
        order(terms, (1, 1), 0),
        order(torch.rand(8, 10, generator=generator), (1, 1), 0),
        order(-terms, (1, 1), 0),
    ]
    deletion, insertion = curves(score, features, fill, places, SHARES, batch=5)
    assert deletion.shape == insertion.shape == (3, 4, 2)
    largest = terms.flatten().sort(descending=True).values
    whole, nothing = (weight * features).sum(), (weight * fill).sum()
    for column, share in enumerate(SHARES):
        top = largest[: round(80 * share)].sum()
        torch.testing.assert_close(deletion[0, column], torch.stack([whole - top, 2 * (whole - top)]))
        torch.testing.assert_close(insertion[0, column], torch.stack([nothing + top, 2 * (nothing + top)]))
    # Nothing beats the truth, nor does worse than its reverse.
    areas = area(torch.stack([deletion, insertion]).numpy()[..., 0], SHARES)
    assert areas[0, 0] < areas[0, 1] < areas[0, 2]
    assert areas[1, 0] > areas[1, 1] > areas[1, 2]


def test_area_is_trapezoidal() -> None:
    assert area(np.array([[1.0, 0.5, 0.0, 0.0], [1, 1, 1, 1]]), SHARES) == pytest.approx([0.1875 + 0.0625, 1.0])
