"""Sanity check: maps must change when the weights are randomised (Adebayo et al., NeurIPS 2018).

The cascade goes from the head down: each step gives one more part new initial weights.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from speakerlens.training.evaluation.conditions import CLEAN, MixtureBatch
from speakerlens.training.evaluation.maps.attributions import (
    GRAD_CAM_PLUS_PLUS,
    GRADIENT_X_INPUT,
    STAGES_AND_FUSED,
    attribute,
)
from speakerlens.training.evaluation.maps.probes import Counter, Probes, Progress, mixture_groups
from speakerlens.training.evaluation.maps.statistics import pearson, ranks, ssim
from speakerlens.training.evaluation.workers import Networks, device_and_front_end, for_each
from speakerlens.training.model.heads import AAMHead
from speakerlens.training.model.network import SpeakerNetwork

STEPS = ("head", "embedding", "s4", "s3", "s2", "s1", "stem")
"""The part that each step randomises, in addition to those before."""

INPUT = "log-mel"
"""In place of a step: similarity of the original map to the log-mel itself. A map whose similarity never falls below
this shows the input rather than the network."""

MAGNITUDE = "|gradient-x-input|"

MAPS = (*STAGES_AND_FUSED, GRAD_CAM_PLUS_PLUS, GRADIENT_X_INPUT, MAGNITUDE)

_SEED = 2018
_OUTLIERS = (0.005, 0.995)  # quantiles at which maps are clipped before scaling


@dataclass(frozen=True)
class Randomised:
    """Similarity to the original of one kind of map of the true speaker, after one step of the cascade.

    Attributes:
        network: its name; step: of `STEPS`, or `INPUT`; map: of `MAPS`.
        rank_correlation: Spearman's over the bins, for each utterance: 1 is unchanged, 0 unrelated; NaN: constant.
        similarity: SSIM of the maps scaled to [0, 1], for each utterance: 1 is unchanged; NaN as above.
    """

    network: str
    step: str
    map: str
    rank_correlation: tuple[float, ...]
    similarity: tuple[float, ...]


def randomisation(networks: Networks, probes: Probes, progress: Progress) -> tuple[Randomised, ...]:
    """Compare the maps of clean utterances with those of networks with more and more randomised weights."""
    device, _ = device_and_front_end(networks)
    cascades = [cascade(network) for network in networks.values()]
    steps = (*STEPS, INPUT)
    values = np.full((2, len(networks), len(steps), len(MAPS), len(probes.clips)), np.nan)

    def measure(group: tuple[MixtureBatch, ...]) -> None:
        batch = group[0].to(device)
        own = batch.indices.tolist()
        for row, (original, cascaded) in enumerate(zip(networks.values(), cascades, strict=True)):
            with torch.no_grad():
                features, frames = original.front_end(batch.mixture.audio, batch.lengths)
            before = _prepared(_maps(original, features, frames, batch.labels), frames)
            for column, step in enumerate(steps):
                if step == INPUT:
                    after = dict.fromkeys(MAPS, _prepared({INPUT: features}, frames)[INPUT])
                else:
                    after = _prepared(_maps(cascaded[step], features, frames, batch.labels), frames)
                for number, name in enumerate(MAPS):
                    for at, one, other in zip(own, before[name], after[name], strict=True):
                        values[:, row, column, number, at] = one.similarity(other)

    total, groups = mixture_groups(probes, [CLEAN], device)
    for_each(groups, measure, device, Counter(total, progress))
    return tuple(
        Randomised(name, step, kind, *(tuple(values[which, row, column, number].tolist()) for which in (0, 1)))
        for row, name in enumerate(networks)
        for column, step in enumerate(steps)
        for number, kind in enumerate(MAPS)
    )


class Prepared(NamedTuple):
    """A map ready for comparison: ranks of its bins, [mel * frames], and its values scaled to [0, 1], [mel, frames]."""

    ranks: NDArray[np.float64]
    scaled: Tensor

    def similarity(self, other: Self) -> tuple[float, float]:
        """Return rank correlation and SSIM with another map; NaN where one is constant."""
        correlation = pearson(self.ranks, other.ranks)
        return correlation, math.nan if math.isnan(correlation) else ssim(self.scaled, other.scaled)


def prepare(values: Tensor) -> Prepared:
    """Rank and scale a map [mel, frames]; values beyond its outer 0.5 % are clipped."""
    low, high = values.quantile(values.new_tensor(_OUTLIERS))
    scaled: Tensor = ((values - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)).clamp(0.0, 1.0)
    return Prepared(ranks(values.flatten().cpu().numpy()), scaled)


def _prepared(maps: Mapping[str, Tensor], frames: Tensor) -> dict[str, list[Prepared]]:
    """Prepare the valid part of each row of maps [batch, mel, frames]."""
    counts = frames.tolist()
    return {
        name: [prepare(values[:, :count]) for values, count in zip(batch, counts, strict=True)]
        for name, batch in maps.items()
    }


def _maps(network: SpeakerNetwork, features: Tensor, frames: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
    maps = attribute(network, features, frames, True, labels).maps
    return {**maps, MAGNITUDE: maps[GRADIENT_X_INPUT].abs()}


def cascade(network: SpeakerNetwork) -> dict[str, SpeakerNetwork]:
    """Return a copy of the network for each of `STEPS`, randomised from the head down to that part.

    Batch normalisation loses its statistics as well. All steps draw the same new weights.
    """
    result = {}
    randomised = copy.deepcopy(network).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        for step, parts in zip(STEPS, _parts(randomised), strict=True):
            for part in parts:
                for module in part.modules():
                    if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | AAMHead):
                        module.reset_parameters()
            device = next(network.parameters()).device
            result[step] = copy.deepcopy(randomised).to(device)
    return result


def _parts(network: SpeakerNetwork) -> list[list[nn.Module]]:
    """Return the parts of a network in the order of `STEPS`."""
    encoder = network.encoder
    stages: list[list[nn.Module]] = [[layer] for layer in reversed(encoder.layers)]
    return [[network.head], [encoder.seg_1], *stages, [encoder.conv1, encoder.bn1]]
