"""The training variants, and the loss of each.

Everything in which two variants differ stands in `VARIANTS`; all else is the same, the crops too for the same seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speakerlens.training.config import Activation, Distance, ObjectiveConfig
from speakerlens.training.errors import UserError
from speakerlens.training.model.network import STAGES, Activations, SpeakerNetwork


@dataclass(frozen=True)
class Variant:
    """What belongs to a variant, and to nothing else.

    crops: crops drawn for an update, in batch sizes.
    copies: corrupted copies in the batch. "none"; "share": they replace a share of the crops, the first ones; "pair":
        every crop is there twice, as recorded (first half of the rows) and corrupted (second half, same order).
    aligned: whether the copies' activations are pulled to the originals'. Originals that are not in the batch, those
        of a share, go through the network besides, forward only if no gradient goes into the clean side.
    about: one line for `--help`.
    """

    crops: float
    copies: Literal["none", "share", "pair"]
    aligned: bool
    about: str

    @property
    def rows(self) -> float:
        """Rows of a batch, in batch sizes."""
        return self.crops * (2 if self.copies == "pair" else 1)

    def passes(self, share: float = 0.5, clean_gradient: bool = False) -> float:
        """Network work of an update, in batch sizes that go forward and back; going back costs twice as much as forth.

        Args:
            share: of the crops that are corrupted (`interference.share`).
            clean_gradient: whether a gradient goes into the clean side (`objective.clean_gradient`).
        """
        originals = share * self.crops if self.aligned and self.copies == "share" else 0.0
        return self.rows + originals * (1.0 if clean_gradient else 1 / 3)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "clean": Variant(1, "none", False, "clean speech only"),
        "da": Variant(1, "share", False, "vanilla augmentation: a share of the batch is corrupted"),
        # 1.75 with half of them copies is 2.04 passes: the compute of the three below.
        "act-da": Variant(1.75, "share", True, "copies' activations pulled to those of their originals"),
        "act-pair": Variant(1, "pair", True, "original and copy both learned from, and their activations aligned"),
        "da-pair": Variant(1, "pair", False, "control: the pairs of act-pair without the alignment"),
        "da-2x": Variant(2, "share", False, "control: da with twice the batch, the compute of act-da"),
    }
)


def find_variant(name: str) -> Variant:
    """Look a variant up by its name; UserError says which there are."""
    if name not in VARIANTS:
        raise UserError(f'there is no variant "{name}"; the variants are {", ".join(VARIANTS)}')
    return VARIANTS[name]


class Loss(NamedTuple):
    """The parts of a batch's loss.

    total: what is minimised, a scalar. cross_entropy: of each row, [rows].
    alignment: distance of each copy from its original, [copies], without its weight; empty for variants that do not
    align.
    correct: whether the best score, without margin, is the row's speaker, bool [rows].
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
    """Run a batch through the network: audio [rows, samples], labels [rows], originals [copies, samples] -> its loss.

    The total is the mean cross-entropy of all rows, plus, for an aligned variant, the weight times the mean distance of
    copies and activations (within-sample invariance, Cai et al., arXiv 2002.00924). `originals` are what the batch's
    copies were before, for an aligned variant whose batch does not hold them; else empty.
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
    """Distance of each of a batch's copies from its original, [copies]."""
    rows = [_activation(activations, name) for name in objective.align]
    if variant.copies == "pair":
        pairs = len(activations.embedding) // 2
        return align([(both[:pairs], both[pairs:]) for both in rows], objective)
    with torch.set_grad_enabled(objective.clean_gradient):
        clean = network.activations(originals)
    copies = len(originals)
    return align(
        [(_activation(clean, name), heard[:copies]) for name, heard in zip(objective.align, rows, strict=True)],
        objective,
    )


def align(chosen: Sequence[tuple[Tensor, Tensor]], objective: ObjectiveConfig) -> Tensor:
    """Distance of each original from its copy, averaged over activations: pairs of [copies, ...] in, [copies] out."""
    distances = [
        distance(clean if objective.clean_gradient else clean.detach(), copy, objective.distance)
        for clean, copy in chosen
    ]
    return torch.stack(distances).mean(dim=0)


def distance(clean: Tensor, copy: Tensor, kind: Distance) -> Tensor:
    """Distance of each row of two activations [pairs, ...] -> [pairs]; none depends on their scale.

    "mse" and "l1": both scaled to a root mean square of 1 over the row, then the mean squared or absolute difference.
    "cosine": 1 - cosine along the channels, averaged over the bins of a stage; a vector has a single cosine.
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
