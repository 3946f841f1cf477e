"""Bilinear interpolation of maps, and where the cells of a coarse map lie on the fine grid.

Half-pixel centres, no corner alignment, edges repeated: the same as torch's
`interpolate(mode="bilinear", align_corners=False)`, without torch.
"""

import numpy as np
from numpy.typing import NDArray


def resize(values: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Interpolates a map [r, c] to [rows, columns]."""
    return _along_rows(_along_rows(values, rows).T, columns).T


def centres(cells: int, size: int) -> NDArray[np.float64]:
    """Position of each of `cells` coarse cells on a grid of `size` points, by the same half-pixel rule: [cells]."""
    return (np.arange(cells, dtype=np.float64) + 0.5) * (size / cells) - 0.5


def _along_rows(values: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    if len(values) == rows:
        return values
    position = np.clip(centres(rows, len(values)), 0.0, None)
    low = position.astype(np.int64)
    high = np.minimum(low + 1, len(values) - 1)
    weight = (position - low).astype(np.float32)[:, None]
    return values[low] * (1 - weight) + values[high] * weight
