"""LayerCAM by autograd: used in evaluation, and the reference that exported graphs are verified against.

Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speakerlens.training.model.front_end import LogMel, time_mask
from speakerlens.training.model.network import Activations, SpeakerNetwork

FUSED_STAGES = (1, 2, 3)  # S2, S3 and S4


class Saliency(NamedTuple):
    """Saliency maps of a batch.

    Attributes:
        target: the explained class, [batch].
        logits: [batch, classes].
        embedding: [batch, size].
        features: log-mel, [batch, mel, frames].
        frames: valid frames, [batch].
        maps: raw map of each stage, [batch, rows, columns], zero beyond the valid columns.
        columns: valid columns of each stage, [batch].
    """

    target: Tensor
    logits: Tensor
    embedding: Tensor
    features: Tensor
    frames: Tensor
    maps: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]


def layercam(
    network: SpeakerNetwork, audio: Tensor, lengths: Tensor | None = None, target: Tensor | None = None
) -> Saliency:
    """Return LayerCAM maps at the taps of the four stages: ReLU(sum over channels of ReLU(dy/dA) x A).

    Args:
        network: in evaluation mode.
        audio: 16 kHz, [batch, samples].
        lengths: valid samples, [batch]; None means all.
        target: class to explain, [batch]; None, or -1 in a row, means the predicted one.
    """
    with torch.no_grad():
        features, frames = network.front_end(audio, lengths)
    return layercam_of_features(network, features, frames, lengths is not None, target)


def layercam_of_features(
    network: SpeakerNetwork, features: Tensor, frames: Tensor, masked: bool, target: Tensor | None = None
) -> Saliency:
    """Return the maps of `layercam` from log-mel features [batch, mel, frames]; `masked` as in `ResNet.forward`."""
    with torch.enable_grad():
        scored = score_target(network, features.detach().clone().requires_grad_(), frames, masked, target)
        taps = tapped(network, scored.activations)
        gradients = torch.autograd.grad(scored.score, taps)
    maps = tuple(layercam_map(gradient, tap).detach() for gradient, tap in zip(gradients, taps, strict=True))
    return scored.saliency(maps)


class CosineSaliency(NamedTuple):
    """Saliency maps of the cosine between each row's embedding and a reference.

    Attributes:
        score: the cosine, [batch].
        embedding, features, maps: as in `Saliency`.
    """

    score: Tensor
    embedding: Tensor
    features: Tensor
    maps: tuple[Tensor, ...]


def cosine_layercam(network: SpeakerNetwork, audio: Tensor, reference: Tensor) -> CosineSaliency:
    """Return LayerCAM maps of a verification score: as `layercam`, of the cosine in place of a logit.

    Args:
        network: in evaluation mode.
        audio: 16 kHz, [batch, samples].
        reference: embedding to compare each row with, of any norm, [batch, size].
    """
    with torch.no_grad():
        features, frames = network.front_end(audio)
    return cosine_layercam_of_features(network, features, frames, reference)


def cosine_layercam_of_features(
    network: SpeakerNetwork, features: Tensor, frames: Tensor, reference: Tensor
) -> CosineSaliency:
    """Return the maps of `cosine_layercam` from log-mel features [batch, mel, frames]; all frames are valid."""
    with torch.enable_grad():
        activations = network.encoder(features.detach().clone().requires_grad_(), frames, False)
        score = F.cosine_similarity(activations.embedding, reference)
        taps = tapped(network, activations)
        gradients = torch.autograd.grad(score.sum(), taps)
    maps = tuple(layercam_map(gradient, tap).detach() for gradient, tap in zip(gradients, taps, strict=True))
    return CosineSaliency(score.detach(), activations.embedding.detach(), features, maps)


class Scored(NamedTuple):
    """Activations and scores of a batch, before the gradients.

    Attributes:
        activations: of the network.
        logits: [batch, classes].
        target: the explained class, [batch].
        score: sum of the targets' logits; rows are independent, so its gradient is each row's own.
    """

    activations: Activations
    logits: Tensor
    target: Tensor
    score: Tensor

    def saliency(self, maps: tuple[Tensor, ...]) -> Saliency:
        """Return the result with the stages' raw maps."""
        found = self.activations
        answer = self.target, self.logits.detach(), found.embedding.detach()
        return Saliency(*answer, found.features.detach(), found.frames, maps, found.stage_frames)


def score_target(
    network: SpeakerNetwork, features: Tensor, frames: Tensor, masked: bool, target: Tensor | None = None
) -> Scored:
    """Compute the logit of the class to explain; `target` as in `layercam`, `masked` as in `ResNet.forward`."""
    activations = network.encoder(features, frames, masked)
    logits = network.logits(activations.embedding)
    predicted = logits.argmax(dim=1)
    target = predicted if target is None else torch.where(target < 0, predicted, target)
    return Scored(activations, logits, target, logits.gather(1, target.unsqueeze(1)).sum())


def tapped(network: SpeakerNetwork, activations: Activations) -> list[Tensor]:
    """Return the activation of each stage at its tap."""
    return [
        (activations.block_inputs if tap == "last-block-input" else activations.stages)[stage]
        for stage, tap in enumerate(network.encoder.taps)
    ]


def layercam_map(gradient: Tensor, activation: Tensor) -> Tensor:
    """Return the LayerCAM of an activation, [batch, channels, rows, columns] -> [batch, rows, columns]."""
    return (gradient.relu() * activation).sum(dim=1).relu()


def display(stage_map: Tensor, columns: Tensor, frames: Tensor, mel_bins: int, width: int) -> Tensor:
    """Return the maps of one stage for display: divided by their maximum and resized (bilinear, half-pixel centres).

    Args:
        stage_map: [batch, rows, columns].
        columns: valid columns, [batch].
        frames: valid frames, [batch].
        mel_bins: rows of the result.
        width: columns of the result, at least the largest of `frames`.

    Returns:
        [batch, mel_bins, width], zero beyond a row's valid frames.
    """
    shown = stage_map.new_zeros(stage_map.shape[0], mel_bins, width)
    for row, (count, frame_count) in enumerate(zip(columns.tolist(), frames.tolist(), strict=True)):
        valid = stage_map[row : row + 1, :, :count]
        peak = valid.max().clamp_min(torch.finfo(torch.float32).tiny)
        resized = F.interpolate(
            (valid / peak).unsqueeze(1), (mel_bins, frame_count), mode="bilinear", align_corners=False
        )
        shown[row, :, :frame_count] = resized[0, 0]
    return shown


def fused(saliency: Saliency) -> Tensor:
    """Return the mean of the displayed maps of `FUSED_STAGES`, [batch, mel, frames]."""
    mel_bins, width = saliency.features.shape[1:]
    shown = [display(saliency.maps[s], saliency.columns[s], saliency.frames, mel_bins, width) for s in FUSED_STAGES]
    return torch.stack(shown).mean(dim=0)


def dominated_bins(front_end: LogMel, speech: Tensor, interference: Tensor) -> Tensor:
    """Return the bins in which interference has more power than speech, from both parts of a mixture [batch, samples].

    Returns:
        bool [batch, mel, frames].
    """
    return front_end.mel_power(interference) > front_end.mel_power(speech)


def deletion_index(saliency_map: Tensor, dominated: Tensor, frames: Tensor) -> Tensor:
    """Return the share of saliency on interference-dominated bins, divided by those bins' share of the area.

    1 means that the map ignores the interference; lower values mean that the model deletes it.

    Args:
        saliency_map: non-negative, [batch, mel, frames].
        dominated: bool, the same shape.
        frames: valid frames, [batch].

    Returns:
        [batch]; NaN where the map is zero, or where no bin is dominated.
    """
    valid = time_mask(frames, saliency_map.shape[2]).unsqueeze(1).expand_as(saliency_map)
    inside = dominated.to(valid.dtype) * valid
    mass = (saliency_map * inside).sum(dim=(1, 2)) / (saliency_map * valid).sum(dim=(1, 2))
    area = inside.sum(dim=(1, 2)) / valid.sum(dim=(1, 2))
    return mass / area
