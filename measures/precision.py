"""What a bundle's graphs in another number format change, and the floor that they must not fall below.

Export measures it against the float32 graphs (`export/precisions.py`), the server decides by it. The entries are those
of `precisions.json`, whose schema is `protos/precisions.schema.json`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FP32, INT8, FP16 = "fp32", "int8", "fp16"
PRECISIONS = (FP32, INT8, FP16)

FLOOR: Mapping[str, float] = {
    "accuracy_points": 0.5,
    "logits_median": 0.05,
    "logits_worst": 0.3,
    "embedding_median": 0.05,
    "embedding_worst": 0.3,
    "map_error_median": 0.1,
    "map_correlation_worst": 0.99,
}
"""`accuracy_points`: most percentage points by which a share may be worse; errors are relative L2, at most; the least
Pearson correlation of a map."""

# Rounding of shares must not decide.
_TINY = 1e-9


def relative_error(answer: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the L2 norm of the difference over that of the reference; of arrays of one shape."""
    norm = float(np.linalg.norm(reference))
    error = float(np.linalg.norm(answer - reference))
    return error / norm if norm > 0 else error


def correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return Pearson's correlation of two arrays of one shape; 1 if both are constant, 0 if one is."""
    centred = [each.astype(np.float64).ravel() - each.mean(dtype=np.float64) for each in (first, second)]
    norms = [float(np.linalg.norm(each)) for each in centred]
    if not all(norms):
        return float(not any(norms))
    return float(centred[0] @ centred[1] / (norms[0] * norms[1]))


def condition_name(entry: Mapping[str, Any]) -> str:
    """Return the name of a condition in messages, such as `noise at 0 dB`."""
    ratio = entry["snr_db"]
    if entry["interference"] == "all":
        return "all conditions"
    return str(entry["interference"]) if ratio is None else f"{entry['interference']} at {ratio:g} dB"


def misses(entry: Mapping[str, Any], floor: Mapping[str, float]) -> list[str]:
    """Return a phrase for every figure of a precision that misses the floor, the worst accuracy first.

    Args:
        entry: of the precision, in `precisions.json`.
        floor: `floor` of that file.
    """
    return [*_shares(entry["conditions"], floor["accuracy_points"]), *_errors(entry["outputs"], floor)]


def _shares(conditions: Sequence[Mapping[str, Any]], points: float) -> Iterator[str]:
    if not conditions:
        yield "accuracy was not measured"
    found = []
    for each in conditions:
        where = condition_name(each)
        for share in each["shares"]:
            worse = 100 * (share["fp32"] - share["value"]) * (-1 if share["lower_is_better"] else 1)
            if not worse <= points + _TINY:
                sentence = (
                    f"{share['name']} under {where} is {100 * share['value']:.1f} %, {100 * share['fp32']:.1f} % in "
                    f"fp32; at most {points:g} points worse are allowed"
                )
                found.append((worse, sentence))
    yield from [sentence for _, sentence in sorted(found, key=lambda pair: -pair[0])]


def _errors(outputs: Sequence[Mapping[str, Any]], floor: Mapping[str, float]) -> Iterator[str]:
    for each in outputs:
        name = each["output"]
        kind = "map" if name.startswith("saliency") else name
        for statistic in ("median", "worst"):
            limit = floor.get(f"{kind}_error_{statistic}" if kind == "map" else f"{kind}_{statistic}")
            if limit is not None and not each[statistic] <= limit:
                yield f"relative error of {name} is {each[statistic]:.2g} ({statistic}), at most {limit:g} is allowed"
        least = floor["map_correlation_worst"]
        if "correlation" in each and not each["correlation"] >= least:
            yield f"correlation of {name} is {each['correlation']:.4f} at worst, at least {least:g} is asked for"
