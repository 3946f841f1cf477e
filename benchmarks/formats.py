"""The floating point operations of graphs."""

from collections.abc import Iterator

import numpy as np


def operations(shapes: Iterator[tuple[str, list[int], list[int], list[int]]]) -> float:
    """Return the floating point operations of nodes: operator, shapes of the two inputs and of the output."""
    total = 0
    for kind, first, second, output in shapes:
        if kind == "Conv":
            total += 2 * int(np.prod(output)) * int(np.prod(second[1:]))
        elif kind == "ConvTranspose":
            total += 2 * int(np.prod(first)) * int(np.prod(second[1:]))
        elif kind in ("MatMul", "Gemm"):
            total += 2 * int(np.prod(output)) * first[-1]
    return float(total)
