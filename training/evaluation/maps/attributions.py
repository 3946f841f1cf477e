"""The maps that are compared: LayerCAM of each stage and its fusions, three other methods, and random maps."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from speakerlens.training.model.front_end import LogMel, time_mask
from speakerlens.training.model.network import STAGES, SpeakerNetwork
from speakerlens.training.model.saliency import FUSED_STAGES, Saliency, display, layercam_map, score_target, tapped

FUSED = "fused"
STAGES_AND_FUSED = (*STAGES, FUSED)

GRAD_CAM_PLUS_PLUS = "grad-cam++"
GRADIENT_X_INPUT = "gradient-x-input"
ENERGY = "energy"
"""A control without a network: log-mel energy, so that the loudest bins are the most salient."""

RANDOM = "random"
RANDOM_COARSE = "random-coarse"
"""Random values at the resolution of S4, interpolated as S4 is; `RANDOM` draws every bin independently."""

METHODS = (*STAGES_AND_FUSED, GRAD_CAM_PLUS_PLUS, GRADIENT_X_INPUT, ENERGY, RANDOM, RANDOM_COARSE)


def fusion_name(stages: Sequence[int]) -> str:
    """Return the name of a fusion of stages (0 is S1), such as "s2+s3"; of a single one, its own name."""
    return "+".join(STAGES[stage] for stage in stages)


FUSIONS: Mapping[str, tuple[int, ...]] = {
    fusion_name(stages): stages
    for count in range(1, len(STAGES) + 1)
    for stages in combinations(range(len(STAGES)), count)
}
"""All fusions of stages, by name."""


class Attributions(NamedTuple):
    """A network's output for a batch, and the attribution maps of each method.

    saliency: LayerCAM's raw maps, with logits and features.
    maps: by name, [batch, mel, frames], zero beyond the valid frames. Those of `STAGES`, `FUSED` and
        `GRAD_CAM_PLUS_PLUS` lie in [0, 1]; `GRADIENT_X_INPUT` has signs.
    """

    saliency: Saliency
    maps: Mapping[str, Tensor]


def attribute(
    network: SpeakerNetwork, features: Tensor, frames: Tensor, masked: bool, target: Tensor | None = None
) -> Attributions:
    """Explain a batch by every method that uses the network, all from one backward pass.

    Args:
        network: in evaluation mode.
        features: log-mel, [batch, mel, frames].
        frames: valid ones, [batch]; `masked` as in `ResNet.forward`.
        masked: whether some rows are shorter than the batch.
        target: class to explain, [batch]; None, or -1 in a row, means the predicted one.
    """
    inputs = features.detach().clone().requires_grad_()
    with torch.enable_grad():
        scored = score_target(network, inputs, frames, masked, target)
        taps = tapped(network, scored.activations)
        last = scored.activations.stages[-1]
        *gradients, at_last, at_input = torch.autograd.grad(scored.score, [*taps, last, inputs])
    raw = tuple(layercam_map(gradient, tap).detach() for gradient, tap in zip(gradients, taps, strict=True))
    saliency = scored.saliency(raw)
    maps = shown_stages(saliency)
    # The mean over time has a gradient beyond the valid columns too, where there is no input.
    valid = time_mask(saliency.columns[-1], last.shape[3])[:, None, None]
    maps[GRAD_CAM_PLUS_PLUS] = shown(saliency, grad_cam_plus_plus(at_last * valid, last.detach()), saliency.columns[-1])
    maps[GRADIENT_X_INPUT] = at_input * saliency.features
    return Attributions(saliency, maps)


def shown_stages(saliency: Saliency) -> dict[str, Tensor]:
    """Return the display maps of each stage and the fused one, each [batch, mel, frames]."""
    by_stage = zip(STAGES, saliency.maps, saliency.columns, strict=True)
    maps = {stage: shown(saliency, stage_map, columns) for stage, stage_map, columns in by_stage}
    maps[FUSED] = fuse(maps, FUSED_STAGES)
    return maps


def fuse(maps: Mapping[str, Tensor], stages: Sequence[int]) -> Tensor:
    """Return the mean of the display maps of some stages (0 is S1), [batch, mel, frames]."""
    return torch.stack([maps[STAGES[stage]] for stage in stages]).mean(dim=0)


def shown(saliency: Saliency, stage_map: Tensor, columns: Tensor) -> Tensor:
    """Normalise a raw map [batch, rows, columns] and resize it to its features, [batch, mel, frames].

    `columns` are the valid ones, [batch].
    """
    mel_bins, width = saliency.features.shape[1:]
    return display(stage_map, columns, saliency.frames, mel_bins, width)


def grad_cam_plus_plus(gradient: Tensor, activation: Tensor) -> Tensor:
    """Return the Grad-CAM++ map of one activation (Chattopadhay et al., WACV 2018, equations 10 to 19).

    The class score enters as exp(S), so that its second and third derivatives are the square and the cube of the
    gradient of S where S is linear, as behind the last ReLU. The common factor exp(S) is left out, since maps are
    divided by their maximum.

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
    """Return the natural logarithm of the mel-filtered power, [batch, samples] -> [batch, mel, frames].

    `lengths` are the valid samples, [batch].
    """
    return front_end.mel_power(audio, lengths).clamp_min(front_end.log_floor).log()


def random_maps(saliency: Saliency, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Draw `RANDOM` and `RANDOM_COARSE` for a batch, each row from its own seed, each [batch, mel, frames]."""
    rows, mel_bins, width = saliency.features.shape
    fine, coarse = torch.zeros(rows, mel_bins, width), torch.zeros(saliency.maps[-1].shape)
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        # Only as many values as the row has, so that they do not depend on the rest of the batch.
        frames, columns = int(saliency.frames[row]), int(saliency.columns[-1][row])
        fine[row, :, :frames] = torch.rand(mel_bins, frames, generator=generator)
        coarse[row, :, :columns] = torch.rand(coarse.shape[1], columns, generator=generator)
    device = saliency.features.device
    return {RANDOM: fine.to(device), RANDOM_COARSE: shown(saliency, coarse.to(device), saliency.columns[-1])}
