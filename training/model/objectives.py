"""The loss of each training variant: cross-entropy, and the distance of copies from their originals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speakerlens.training.config import Activation, Distance, ObjectiveConfig
from speakerlens.training.model.network import STAGES, Activations, SpeakerNetwork
from speakerlens.training.variants import Variant


class Loss(NamedTuple):
    """The parts of a batch's loss.

    Attributes:
        total: the scalar to minimise.
        cross_entropy: of each row, [rows].
        alignment: unweighted distance of each copy from its original, [copies]; empty for variants that do not align.
        correct: whether the largest logit, without margin, is the row's speaker, bool [rows].
    """

    total: Tensor
    cross_entropy: Tensor
    alignment: Tensor
    correct: Tensor


def compute_loss(
    network: SpeakerNetwork,
    audio: Tensor,
    labels: Tensor,
    originals: Tensor,
    variant: Variant,
    objective: ObjectiveConfig,
    margin: float,
) -> Loss:
    """Return the loss of a batch.

    The total is the mean cross-entropy of all rows, plus, for an aligned variant, the weight times the mean distance
    over copies and activations (within-sample invariance, Cai et al., arXiv 2002.00924).

    Args:
        network: in training mode.
        audio: float32 [rows, samples].
        labels: int64 [rows].
        originals: clean originals of the copies, float32 [copies, samples], for an aligned variant whose rows do not
            include them; else empty.
        variant: layout of the batch.
        objective: configuration of the alignment.
        margin: of the head, in radians.
    """
    activations = network.activations(audio)
    scores = network.training_logits(activations.embedding, labels, margin)
    cross_entropy = F.cross_entropy(scores, labels, reduction="none")
    with torch.no_grad():
        correct = network.logits(activations.embedding).argmax(dim=1) == labels
    total = cross_entropy.mean()
    alignment = cross_entropy.new_zeros(0)
    if variant.aligned:
        alignment = _alignment(network, activations, originals, variant, objective)
        total = total + objective.weight * alignment.mean()
    return Loss(total, cross_entropy, alignment, correct)


def _alignment(
    network: SpeakerNetwork, activations: Activations, originals: Tensor, variant: Variant, objective: ObjectiveConfig
) -> Tensor:
    """Return the distance of each copy from its original, [copies]."""
    rows = [_activation(activations, name) for name in objective.align]
    if variant.copies == "pair":
        pairs = len(activations.embedding) // 2
        return align([(both[:pairs], both[pairs:]) for both in rows], objective)
    with torch.set_grad_enabled(objective.clean_gradient):
        clean = network.activations(originals)
    copies = len(originals)
    return align(
        [(_activation(clean, name), both[:copies]) for name, both in zip(objective.align, rows, strict=True)],
        objective,
    )


def align(chosen: Sequence[tuple[Tensor, Tensor]], objective: ObjectiveConfig) -> Tensor:
    """Return the distance of each original from its copy, averaged over activations: pairs [copies, …] -> [copies]."""
    distances = [
        distance(clean if objective.clean_gradient else clean.detach(), copy, objective.distance)
        for clean, copy in chosen
    ]
    return torch.stack(distances).mean(dim=0)


def distance(clean: Tensor, copy: Tensor, kind: Distance) -> Tensor:
    """Return the scale-invariant distance of each row of two activations, [pairs, …] -> [pairs].

    "mse", "l1": mean squared or absolute difference after scaling each row to a root mean square of 1.
    "cosine": 1 - cosine along the channels, averaged over the bins of a stage; for a vector, of the whole vector.
    """
    clean, copy = clean.float(), copy.float()
    if kind == "cosine":
        cosine = F.cosine_similarity(clean, copy, dim=1)
        return 1 - (cosine if cosine.ndim == 1 else cosine.flatten(1).mean(dim=1))
    difference = _unit_rms(clean.flatten(1)) - _unit_rms(copy.flatten(1))
    return (difference.square() if kind == "mse" else difference.abs()).mean(dim=1)


def _unit_rms(rows: Tensor) -> Tensor:
    size: int = rows.shape[1]
    return F.normalize(rows, dim=1) * math.sqrt(size)


def _activation(activations: Activations, name: Activation) -> Tensor:
    if name == "embedding":
        return activations.embedding
    if name == "statistics":
        return activations.statistics
    return activations.stages[STAGES.index(name)]
