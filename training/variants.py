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
