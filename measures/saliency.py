"""What a saliency map looks at, in numbers."""

import math

import numpy as np
from numpy.typing import NDArray

FLOOR_PERCENTILE = 20.0
FLOOR_BIAS_DB = 3.0
ABOVE_FLOOR_DB = 3.0
_NEPER_DB = 10.0 / math.log(10.0)


def estimated_interference(features: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Where stationary interference is probably louder than the speech, from the mixture alone.

    The level of the interference in a mel row is taken to be a low percentile of the row over time, which speech does
    not reach as it pauses everywhere now and then (quantile-based noise estimation: Stahl, Fischer and Bippus, ICASSP
    2000), plus the bias of that percentile to the mean of a noise's power (as minimum statistics are corrected for
    theirs: Martin, IEEE Trans. Speech and Audio Processing 9(5), 2001). Interference and speech of equal power are 3
    dB above either, so bins up to there are the interference's. What comes and goes as speech does, such as another
    talker, is not found.

    Args:
        features: natural logarithm of the mel power, [mel, frames]; a constant added to a row changes nothing.

    Returns:
        [mel, frames].
    """
    # As np.percentile, which takes eight times as long.
    place = FLOOR_PERCENTILE / 100 * (features.shape[1] - 1)
    low, high = math.floor(place), math.ceil(place)
    ordered = np.partition(features, (low, high), axis=1)
    floor = ordered[:, [low]] + (ordered[:, [high]] - ordered[:, [low]]) * np.float32(place - low)
    found: NDArray[np.bool_] = features <= floor + (FLOOR_BIAS_DB + ABOVE_FLOOR_DB) / _NEPER_DB
    return found


def deletion_index(saliency_map: NDArray[np.floating], where: NDArray[np.bool_]) -> float:
    """Share of a map's mass on the interference's bins over those bins' share of the area.

    1 means that the map is blind to the interference; the lower, the more the model deletes it.

    Args:
        saliency_map: non-negative, [mel, frames].
        where: the interference's bins, the same shape.

    Returns:
        NaN where the map is empty, or where there are no such bins.
    """
    total, area = float(saliency_map.sum(dtype=np.float64)), np.count_nonzero(where) / where.size
    if not total or not area:
        return math.nan
    return float((saliency_map * where).sum(dtype=np.float64)) / total / area


def concentration(saliency_map: NDArray[np.floating]) -> float:
    """Gini coefficient of a map's bins: 0 where all are equal, 1 where one has everything.

    (Of the measures of sparsity the one that keeps the most of their wanted properties: Hurley and Rickard,
    "Comparing measures of sparsity", IEEE Trans. Information Theory 55(10), 2009.)

    Args:
        saliency_map: non-negative, of any shape.

    Returns:
        NaN where the map is empty.
    """
    values = np.sort(saliency_map, axis=None)
    total, count = float(values.sum(dtype=np.float64)), values.size
    if not total or count < 2:
        return math.nan
    # No product of vectors: BLAS would wake its threads for it.
    ranks = np.arange(1 - count, count, 2, dtype=np.float64)
    return float((ranks * values).sum(dtype=np.float64)) / (total * (count - 1))
