"""Deletion and insertion curves of one utterance (Petsiuk et al., "RISE", BMVC 2018), on log-mel features.

Deleted bins are filled with their local mean, which removes the detail and keeps the level around them, so that the
input stays close to speech. (Zero would be the mean of the mel bin over the utterance, which is loud in every pause.)
Bins that are deleted together lose what they have in common only as far as the window reaches beyond them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

FILL_WINDOW = (21, 51)
"""Mel bins and frames over which the fill is averaged: a quarter of 80 bins, half a second."""

Score = Callable[[Tensor], Tensor]


def local_mean(features: Tensor, window: tuple[int, int] = FILL_WINDOW) -> Tensor:
    """Return the mean of the features around each bin, [mel, frames] -> [mel, frames]; edges are not padded."""
    padding = (window[0] // 2, window[1] // 2)
    mean = F.avg_pool2d(features[None, None], window, stride=1, padding=padding, count_include_pad=False)
    return mean[0, 0]


def order(saliency: Tensor, cell: tuple[int, int], seed: int) -> Tensor:
    """Return the place of each bin, int64 [mel, frames], from the most salient (0) to the least; ties in random order.

    Args:
        saliency: [mel, frames].
        cell: mel bins and frames that form one unit, ordered by their mean saliency; (1, 1) for single bins.
        seed: of the random order.
    """
    means = F.avg_pool2d(saliency[None, None], cell, ceil_mode=True, count_include_pad=False)[0, 0].flatten().cpu()
    shuffled = torch.randperm(len(means), generator=torch.Generator().manual_seed(seed))
    cells = torch.empty_like(shuffled)
    cells[shuffled[means[shuffled].argsort(descending=True, stable=True)]] = torch.arange(len(means))
    mel_bins, frames = saliency.shape
    by_cell = cells.reshape(-(-mel_bins // cell[0]), -1)
    by_bin = by_cell.repeat_interleave(cell[0], 0)[:mel_bins].repeat_interleave(cell[1], 1)[:, :frames]
    return _places(by_bin.flatten()).reshape(saliency.shape).to(saliency.device)


def _places(values: Tensor) -> Tensor:
    """Return the place of each value [N] in ascending order, int64 [N]; ties keep their order."""
    places = torch.empty_like(values)
    places[values.argsort(stable=True)] = torch.arange(len(values))
    return places


def curves(
    score: Score, features: Tensor, fill: Tensor, places: Sequence[Tensor], shares: Sequence[float], batch: int
) -> tuple[Tensor, Tensor]:
    """Score an utterance while its most salient bins are deleted from it, and inserted into the fill.

    Args:
        score: maps a batch of features [batch, mel, frames] to scores [batch, values].
        features: log-mel, [mel, frames].
        fill: replaces deleted bins, the same shape.
        places: from `order`, one per method.
        shares: of the bins, from 0 to 1.
        batch: how many versions are scored together.

    Returns:
        Deletion and insertion, each [methods, shares, values].
    """
    counts = [round(share * features.numel()) for share in shares]
    ends = score(torch.stack([features, fill]))
    inner = [(place, count, keep) for keep in (False, True) for place in places for count in counts[1:-1]]
    scores = []
    for first in range(0, len(inner), batch):
        versions = [
            torch.where((place < count) == keep, features, fill) for place, count, keep in inner[first : first + batch]
        ]
        scores.append(score(torch.stack(versions)))
    found = torch.cat([ends[:0], *scores]).reshape(2, len(places), len(counts) - 2, -1)
    whole, nothing = (ends[row].expand(len(places), 1, -1) for row in (0, 1))
    return torch.cat([whole, found[0], nothing], dim=1), torch.cat([nothing, found[1], whole], dim=1)


def area(curve: NDArray[np.float64], shares: Sequence[float]) -> NDArray[np.float64]:
    """Return the area under curves by the trapezoidal rule, [..., shares] -> [...]."""
    areas: NDArray[np.float64] = np.trapezoid(curve, np.asarray(shares), axis=-1)
    return areas
