"""Whether pieces of speech are of one speaker, by how their embeddings agree with each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# How far below the threshold the mean cosine of two groups of pieces must lie, and how far below that within them, so
# that they are two speakers' (docs/decisions/0064-enrolment.md).
CONTRAST: Final = 0.2
BELOW: Final = 0.0


@dataclass(frozen=True)
class Outlier:
    """An utterance that is not of the others' speaker.

    Attributes:
        utterance: its index.
        cosine: mean to the other utterances' pieces; between its own two groups of pieces if `within`.
        others: mean among the others' pieces.
        limit: the least cosine that would have been accepted.
        within: whether the utterance itself holds two speakers.
    """

    utterance: int
    cosine: float
    others: float
    limit: float
    within: bool


def outliers(
    utterances: NDArray[np.int_], embeddings: Floats, thresholds: Sequence[tuple[int, float]]
) -> list[Outlier]:
    """Return the utterances that are not of one speaker with the rest; none where all agree.

    The pieces are split into the two groups that agree least, by average linkage. They are two speakers' where the
    smaller group's mean is below the threshold of verification against the mean of the larger one.

    Args:
        utterances: index of the utterance of each piece, [n]; below 0 for what is stored of the speaker, which is
            never an outlier.
        embeddings: of length one, [n, size].
        thresholds: pairs, ascending: utterances in a reference (1 first), and the cosine from which an utterance is
            accepted as of the reference's speaker.
    """
    if len(embeddings) < 2:
        return []
    cosines = embeddings @ embeddings.T
    small = _smaller_group(cosines)
    stored = utterances < 0
    if stored.any() and (small & stored).sum() > (~small & stored).sum():
        small = ~small
    between, within = _means(cosines, small)
    limit = [threshold for size, threshold in thresholds if size <= (~small).sum()][-1]
    if not (between < limit - BELOW and between < within - CONTRAST):
        return []
    found = []
    for utterance in np.unique(utterances[small & ~stored]):
        own = utterances == utterance
        mixed = bool((own & ~small).any())
        first, second = (own & small, own & ~small) if mixed else (own, ~own)
        cosine = float(cosines[np.ix_(first, second)].mean())
        found.append(Outlier(int(utterance), cosine, _within(cosines, ~small), limit, mixed))
    return found


def _smaller_group(cosines: Floats) -> NDArray[np.bool_]:
    """Return the smaller of the two groups that average linkage joins last, as a mask [n]."""
    groups = [[index] for index in range(len(cosines))]
    means = cosines.copy()
    np.fill_diagonal(means, -np.inf)
    while len(groups) > 2:
        first, second = sorted(divmod(int(means.argmax()), len(groups)))
        sizes = len(groups[first]), len(groups[second])
        joined = (sizes[0] * means[first] + sizes[1] * means[second]) / sum(sizes)
        joined[first] = -np.inf
        means[first], means[:, first] = joined, joined
        means = np.delete(np.delete(means, second, 0), second, 1)
        groups[first] += groups.pop(second)
    mask = np.zeros(len(cosines), bool)
    mask[min(groups, key=lambda group: (len(group), -group[0]))] = True
    return mask


def _means(cosines: Floats, small: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the mean cosine between the two groups, and that within them; the latter 1 where each has one piece."""
    between = float(cosines[np.ix_(small, ~small)].mean())
    pairs = [_pairs(cosines, mask) for mask in (small, ~small)]
    own = np.concatenate(pairs)
    return between, float(own.mean()) if len(own) else 1.0


def _within(cosines: Floats, mask: NDArray[np.bool_]) -> float:
    own = _pairs(cosines, mask)
    return float(own.mean()) if len(own) else 1.0


def _pairs(cosines: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Return the cosines of all pairs within a group."""
    own = cosines[np.ix_(mask, mask)]
    pairs: Floats = own[np.triu_indices(len(own), 1)]
    return pairs
