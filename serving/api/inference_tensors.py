"""The tensors of a model: what `inference.GRPCInferenceService` takes and gives, by name."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import DTypeLike

from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import SALIENCY

Datatype = Literal["FP32", "INT64"]

AUDIO, TARGET, LENGTHS = "audio", "target", "lengths"
PROBABILITIES, EMBEDDING, FUSED = "probabilities", "embedding", "saliency"
# What a request that names no output gets.
USUAL: Final = (PROBABILITIES, EMBEDDING)
# Little-endian, as the protocol says.
DTYPES: Final[dict[Datatype, DTypeLike]] = {"FP32": "<f4", "INT64": "<i8"}
ANY = -1


@dataclass(frozen=True)
class Tensor:
    """A named tensor; `dims` leaves out the batch's dimension, and ANY is any size."""

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    optional: bool = False

    @property
    def item_bytes(self) -> int:
        """Size of one value."""
        return np.dtype(DTYPES[self.datatype]).itemsize

    @property
    def form(self) -> str:
        """The whole shape, for messages: `[batch, 1]`."""
        return f"[{', '.join(['batch', *('samples' if size == ANY else str(size) for size in self.dims)])}]"


INPUTS: Final = (
    Tensor(AUDIO, "FP32", (ANY,)),
    Tensor(TARGET, "INT64", (1,), optional=True),
    Tensor(LENGTHS, "INT64", (1,), optional=True),
)


def outputs(bundle: Bundle) -> tuple[Tensor, ...]:
    """What a model can be asked for."""
    maps = [Tensor(name, "FP32", (stage.rows, ANY)) for name, stage in zip(SALIENCY, bundle.stages, strict=True)]
    return (
        Tensor(PROBABILITIES, "FP32", (len(bundle.speakers),)),
        Tensor(EMBEDDING, "FP32", (bundle.embedding_size,)),
        Tensor(FUSED, "FP32", (bundle.mel_bins, ANY)),
        *maps,
    )


def is_map(name: str) -> bool:
    """Whether an output needs the explaining graph."""
    return name not in USUAL
