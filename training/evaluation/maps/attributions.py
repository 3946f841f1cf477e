"""The maps that are compared: LayerCAM of each stage and its fusions, three other methods, and chance."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from speakerlens.training.evaluation.measure import FUSED
from speakerlens.training.model.front_end import LogMel, time_mask
from speakerlens.training.model.network import STAGES, SpeakerNetwork
from speakerlens.training.model.saliency import FUSED_STAGES, Saliency, display, layercam_map, score_target, tapped

GRAD_CAM_PLUS_PLUS = "grad-cam++"
GRADIENT_X_INPUT = "gradient-x-input"
ENERGY = "energy"
"""The control that knows no network: log-mel energy, so that the loudest bins are the most salient."""

RANDOM = "random"
RANDOM_COARSE = "random-coarse"
"""Chance at the resolution of S4, shown as S4 is: a map of blobs, where `random` is one of single bins."""

METHODS = (*STAGES, FUSED, GRAD_CAM_PLUS_PLUS, GRADIENT_X_INPUT, ENERGY, RANDOM, RANDOM_COARSE)


def fusion_name(stages: Sequence[int]) -> str:
    """Name the fusion of some stages (0 is S1): "s2+s3"; of a single one, its own name."""
    return "+".join(STAGES[stage] for stage in stages)


FUSIONS: Mapping[str, tuple[int, ...]] = {
    fusion_name(stages): stages
    for count in range(1, len(STAGES) + 1)
    for stages in combinations(range(len(STAGES)), count)
}
"""All ways to fuse stages, by name."""


class Attributions(NamedTuple):
    """What a network answered about a batch, and what in it each method holds responsible.

    saliency: LayerCAM's raw maps, with logits and features.
    maps: by name, [batch, mel, frames], zero beyond the valid frames. Those of `STAGES`, `FUSED` and
        `GRAD_CAM_PLUS_PLUS` lie in [0, 1]; `GRADIENT_X_INPUT` has signs.
    """

    saliency: Saliency
    maps: Mapping[str, Tensor]


def attribute(
    network: SpeakerNetwork, features: Tensor, frames: Tensor, masked: bool, target: Tensor | None = None
) -> Attributions:
    """Explain a batch by every method that looks at the network, all from one backward pass.

    Args:
        network: in evaluation mode.
        features: log-mel, [batch, mel, frames].
        frames: valid ones, [batch]; `masked` as in `ResNet.forward`.
        masked: whether some rows are shorter than the batch.
        target: class to explain, [batch]; None, or -1 in a row, means the predicted one.
    """
    heard = features.detach().clone().requires_grad_()
    with torch.enable_grad():
        scored = score_target(network, heard, frames, masked, target)
        taps = tapped(network, scored.activations)
        last = scored.activations.stages[-1]
        *gradients, at_last, at_input = torch.autograd.grad(scored.score, [*taps, last, heard])
    raw = tuple(layercam_map(gradient, tap).detach() for gradient, tap in zip(gradients, taps, strict=True))
    saliency = scored.saliency(raw)
    maps = shown_stages(saliency)
    # The mean over time has a gradient beyond the valid columns too, though nothing is there to have one.
    valid = time_mask(saliency.columns[-1], last.shape[3])[:, None, None]
    maps[GRAD_CAM_PLUS_PLUS] = shown(saliency, grad_cam_plus_plus(at_last * valid, last.detach()), saliency.columns[-1])
    maps[GRADIENT_X_INPUT] = at_input * saliency.features
    return Attributions(saliency, maps)


def shown_stages(saliency: Saliency) -> dict[str, Tensor]:
    """Show the map of each stage and the fused one, [batch, mel, frames]."""
    by_stage = zip(STAGES, saliency.maps, saliency.columns, strict=True)
    maps = {stage: shown(saliency, stage_map, columns) for stage, stage_map, columns in by_stage}
    maps[FUSED] = fuse(maps, FUSED_STAGES)
    return maps


def fuse(maps: Mapping[str, Tensor], stages: Sequence[int]) -> Tensor:
    """Mean of the shown maps of some stages (0 is S1)."""
    return torch.stack([maps[STAGES[stage]] for stage in stages]).mean(dim=0)


def shown(saliency: Saliency, stage_map: Tensor, columns: Tensor) -> Tensor:
    """Normalise and resize a raw map to the features it explains, [batch, mel, frames]."""
    mel_bins, width = saliency.features.shape[1:]
    return display(stage_map, columns, saliency.frames, mel_bins, width)


def grad_cam_plus_plus(gradient: Tensor, activation: Tensor) -> Tensor:
    """Grad-CAM++ of one activation (Chattopadhay et al., WACV 2018, equations 10 to 19 for an exponential score).

    The class score enters as exp(S), so that its second and third derivatives are the square and the cube of the
    gradient of S where S is linear, as behind the last ReLU. The factor exp(S) is the same everywhere and left out, for
    maps are shown divided by their maximum.

    Args:
        gradient: of the logit S in the activation, [batch, channels, rows, columns]; zero beyond the valid columns.
        activation: the same shape, zero there as well.

    Returns:
        [batch, rows, columns].
    """
    square = gradient.square()
    total = activation.sum(dim=(2, 3), keepdim=True)
    denominator = 2 * square + total * square * gradient
    alpha = torch.where(denominator == 0, 0.0, square / torch.where(denominator == 0, 1.0, denominator))
    weights = (alpha * gradient.relu()).sum(dim=(2, 3), keepdim=True)
    return (weights * activation).sum(dim=1).relu()


def log_energy(front_end: LogMel, audio: Tensor, lengths: Tensor) -> Tensor:
    """Natural logarithm of the mel-filtered power of audio [batch, samples], [batch, mel, frames]."""
    return front_end.mel_power(audio, lengths).clamp_min(front_end.log_floor).log()


def chance(saliency: Saliency, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Draw `RANDOM` and `RANDOM_COARSE` for a batch, each row from a seed of its own, [batch, mel, frames]."""
    rows, mel_bins, width = saliency.features.shape
    fine, coarse = torch.zeros(rows, mel_bins, width), torch.zeros(saliency.maps[-1].shape)
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        # As many values as the row has itself, so that they do not depend on what it is batched with.
        frames, columns = int(saliency.frames[row]), int(saliency.columns[-1][row])
        fine[row, :, :frames] = torch.rand(mel_bins, frames, generator=generator)
        coarse[row, :, :columns] = torch.rand(coarse.shape[1], columns, generator=generator)
    device = saliency.features.device
    return {RANDOM: fine.to(device), RANDOM_COARSE: shown(saliency, coarse.to(device), saliency.columns[-1])}
