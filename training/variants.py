"""The training variants: what is in a batch, and whether copies are aligned with their originals.

Two variants differ in what `VARIANTS` says of them and in nothing else; for one seed they draw the same crops too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from speakerlens.training.errors import UserError


@dataclass(frozen=True)
class Variant:
    """A training variant.

    Attributes:
        crops: crops drawn for an update, in batch sizes.
        copies: corrupted copies in the batch. "none"; "share": they replace a share of the crops, the first ones;
            "pair": every crop occurs twice, clean (first half of the rows) and corrupted (second half, same order).
        aligned: whether the copies' activations are pulled to the originals'. With "share" the originals are not rows
            of the batch and pass through the network separately, forward only unless `objective.clean_gradient`.
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
        """Return the compute of an update, in forward and backward passes of a batch; backward costs twice forward.

        Args:
            share: share of the crops that are corrupted (`interference.share`).
            clean_gradient: whether the clean side gets a gradient (`objective.clean_gradient`).
        """
        originals = share * self.crops if self.aligned and self.copies == "share" else 0.0
        return self.rows + originals * (1.0 if clean_gradient else 1 / 3)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "clean": Variant(1, "none", False, "clean speech only"),
        "da": Variant(1, "share", False, "vanilla augmentation: a share of the batch is corrupted"),
        # 1.75 crops, half of them copies, are 2.04 passes: the compute of the three variants below.
        "act-da": Variant(1.75, "share", True, "copies' activations pulled to those of their originals"),
        "act-pair": Variant(1, "pair", True, "original and copy are both classified, and their activations aligned"),
        "da-pair": Variant(1, "pair", False, "control: the pairs of act-pair without the alignment"),
        "da-2x": Variant(2, "share", False, "control: da with twice the batch, the compute of act-da"),
    }
)


def find_variant(name: str) -> Variant:
    """Return a variant by name; raise UserError listing the variants if it is unknown."""
    if name not in VARIANTS:
        raise UserError(f'unknown variant "{name}"; the variants are {", ".join(VARIANTS)}')
    return VARIANTS[name]
