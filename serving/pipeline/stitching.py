"""One map out of those of overlapping windows.

Windows are cross-faded: each column is a mean over the windows that cover it, weighted by how far inside each window
it lies. So a window's edges, where the network sees less, count little, and no joint shows; where a single window
covers, its map stands as it is.
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import Mapped

MappedT_co = TypeVar("MappedT_co", bound=Mapped, covariant=True)


class Piece(NamedTuple, Generic[MappedT_co]):
    """What was computed for the window beginning `start` samples into the audio; it may have had no vote."""

    start: int
    prediction: MappedT_co
    votes: bool


def stitched(
    bundle: Bundle, pieces: Sequence[Piece[Mapped]], samples: int
) -> tuple[NDArray[np.float32], tuple[NDArray[np.float32], ...]]:
    """Features [mel, frames] and raw maps [rows, columns] by stage, of the whole of `samples` at 16 kHz.

    A window without a vote has no part in the score, so its own maps are zero; its features are shown all the same.
    """
    frames = bundle.frames(samples)
    features = _joined(frames, [(piece.start // bundle.frame_shift, piece.prediction.features) for piece in pieces])
    maps = []
    for index, stage in enumerate(bundle.stages):
        step = bundle.frame_shift * stage.stride
        parts = [(piece.start // step, piece.prediction.saliency[index] * np.float32(piece.votes)) for piece in pieces]
        maps.append(_joined(-(-frames // stage.stride), parts))
    return features, tuple(maps)


def _joined(columns: int, parts: Sequence[tuple[int, NDArray[np.float32]]]) -> NDArray[np.float32]:
    rows = parts[0][1].shape[0]
    total, weights = np.zeros((rows, columns), np.float32), np.zeros(columns, np.float32)
    for first, values in parts:
        count = values.shape[1]
        # Half a column at the outermost, and a column more for each further in.
        weight = np.minimum(np.arange(count), np.arange(count)[::-1]).astype(np.float32) + np.float32(0.5)
        total[:, first : first + count] += values * weight
        weights[first : first + count] += weight
    return total / weights
