"""Faithfulness of maps: deletion and insertion of the bins that a map calls salient."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.training.evaluation.conditions import Condition, MixtureBatch
from speakerlens.training.evaluation.maps.attributions import (
    ENERGY,
    FUSIONS,
    METHODS,
    attribute,
    fuse,
    log_energy,
    random_maps,
)
from speakerlens.training.evaluation.maps.curves import Score, area, curves, local_mean, order
from speakerlens.training.evaluation.maps.probes import Counter, Probes, Progress, mixture_groups
from speakerlens.training.evaluation.workers import Networks, batch_size, device_and_front_end, for_each
from speakerlens.training.model.network import SpeakerNetwork

BINS = (1, 1)
CELLS = (4, 4)
"""Mel bins and frames (40 ms). Masking single bins favours scattered maps: it adds noise that disturbs any network,
wherever it is. Cells treat coarse and fine maps alike."""


@dataclass(frozen=True)
class Masking:
    """Masking of an utterance.

    Attributes:
        shares: of its bins, from 0 to 1.
        cell: mel bins and frames that are masked together.
    """

    shares: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 1.0)
    cell: tuple[int, int] = CELLS


@dataclass(frozen=True)
class Curve:
    """The true speaker's score over the masked shares.

    Attributes:
        probability: softmax at each share, mean over the utterances; logit: the same before the softmax.
        areas: area under the probability for each utterance; logit_areas: likewise.
    """

    probability: tuple[float, ...]
    logit: tuple[float, ...]
    areas: tuple[float, ...]
    logit_areas: tuple[float, ...]


@dataclass(frozen=True)
class Faithfulness:
    """Deletion and insertion of the bins that one method calls salient, for one network in one condition.

    Attributes:
        network: its name; kind, snr_db: the condition; method: of `METHODS` or `FUSIONS`.
        cell: mel bins and frames masked together; shares: of the bins, from 0 to 1.
        deletion: from the whole utterance, the most salient bins first: the lower its area the more faithful.
        insertion: from the fill alone, the most salient bins first: the higher its area the more faithful.
    """

    network: str
    kind: str
    snr_db: float | None
    method: str
    cell: tuple[int, int]
    shares: tuple[float, ...]
    deletion: Curve
    insertion: Curve


def faithfulness(
    networks: Networks,
    probes: Probes,
    conditions: Sequence[Condition],
    progress: Progress,
    methods: Sequence[str] = METHODS,
    masking: Masking = Masking(),
) -> tuple[Faithfulness, ...]:
    """Measure deletion and insertion curves of each method's maps of the true speaker, for each network.

    Each network runs on each utterance `2 * len(methods) * (len(masking.shares) - 2)` times per condition.
    """
    device, _ = device_and_front_end(networks)
    shape = (len(networks), len(conditions), len(methods), 2, len(masking.shares), 2, len(probes.clips))
    scores = np.full(shape, np.nan)

    def measure(group: Sequence[MixtureBatch]) -> None:
        for column, batch in enumerate(made.to(device) for made in group):
            for row, network in enumerate(networks.values()):
                found = _curves(network, batch, methods, masking)
                scores[row, column, ..., batch.indices.cpu().numpy()] = found

    total, groups = mixture_groups(probes, conditions, device)
    for_each(groups, measure, device, Counter(total, progress))
    return tuple(
        Faithfulness(
            name,
            condition.kind,
            condition.snr_db,
            method,
            masking.cell,
            masking.shares,
            *(_summary(scores[row, column, number, which], masking.shares) for which in (0, 1)),
        )
        for row, name in enumerate(networks)
        for column, condition in enumerate(conditions)
        for number, method in enumerate(methods)
    )


def _curves(
    network: SpeakerNetwork, batch: MixtureBatch, methods: Sequence[str], masking: Masking
) -> NDArray[np.float64]:
    """Return the curves of a batch, [batch, methods, deletion and insertion, shares, probability and logit]."""
    with torch.no_grad():
        features, frames = network.front_end(batch.mixture.audio, batch.lengths)
        energy = log_energy(network.front_end, batch.mixture.audio, batch.lengths)
    seeds = batch.indices.tolist()
    found = attribute(network, features, frames, True, batch.labels)
    maps = {**found.maps, **random_maps(found.saliency, seeds), ENERGY: energy}
    maps |= {name: fuse(maps, FUSIONS[name]) for name in methods if name in FUSIONS}
    rows = []
    for row, (seed, label) in enumerate(zip(seeds, batch.labels.tolist(), strict=True)):
        count = int(frames[row])
        whole = features[row, :, :count]
        places = [order(maps[name][row, :, :count], masking.cell, seed) for name in methods]
        both = curves(
            _score_of(network, label),
            whole,
            local_mean(whole),
            places,
            masking.shares,
            batch_size(whole.device),
        )
        rows.append(torch.stack(both, dim=1).double().cpu().numpy())
    return np.stack(rows)


def _score_of(network: SpeakerNetwork, label: int) -> Score:
    def score(features: Tensor) -> Tensor:
        """Return probability and logit of the label, [batch, mel, frames] -> [batch, 2]."""
        frames = torch.full((len(features),), features.shape[2], device=features.device)
        with torch.inference_mode():
            logits = network.logits(network.encoder(features, frames, masked=False).embedding)
            return torch.stack([logits.softmax(dim=1)[:, label], logits[:, label]], dim=1)

    return score


def _summary(scores: NDArray[np.float64], shares: Sequence[float]) -> Curve:
    """Summarise the curves of all utterances, [shares, probability and logit, utterances]."""
    mean = scores.mean(axis=2)
    areas = area(np.moveaxis(scores, 0, -1), shares)
    return Curve(
        tuple(mean[:, 0].tolist()), tuple(mean[:, 1].tolist()), tuple(areas[0].tolist()), tuple(areas[1].tolist())
    )
