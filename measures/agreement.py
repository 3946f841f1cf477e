"""Whether pieces of speech are of one speaker, by how their embeddings agree with each other."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Two groups of utterances are two speakers' where the cosine of their means is below the threshold of verification.
# That is of utterances as short as the corpus has them; where all have several windows, it is higher by LONG_ABOVE. A
# stretch of two windows is another speaker's where its cosine to the other utterances is below it by STRETCH_BELOW.
# Pieces are shorter: theirs must be lower by PIECES_BELOW, or by PIECE_BELOW for one piece alone, and the mean cosine
# between the groups lower by CONTRAST than that within them; a contrast of LARGE_CONTRAST is enough. Measured on real
# speech, see docs/decisions/0064-enrolment.md.
LONG_ABOVE: Final = 0.085
STRETCH_BELOW: Final = 0.1
PIECES_BELOW: Final = 0.13
PIECE_BELOW: Final = 0.29
CONTRAST: Final = 0.2
LARGE_CONTRAST: Final = 0.42


@dataclass(frozen=True)
class Outlier:
    """An utterance that is not of the others' speaker.

    Attributes:
        utterance: its index.
        cosine: mean to the other utterances' pieces; if `within`, between its own two groups of pieces, or of its
            farthest stretch to the other utterances.
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
    utterances: Sequence[tuple[int, Floats]],
    pieces: Sequence[tuple[int, Floats]],
    thresholds: Sequence[tuple[int, float]],
    stretches: Sequence[tuple[int, Floats]] = (),
) -> list[Outlier]:
    """Return the utterances that are not of one speaker with the rest; none where all agree.

    Utterances are split into the two groups that agree least, by average linkage. The smaller group is another
    speaker's where the groups' means differ by more than one speaker's do; then the rest is split again. One utterance
    may hold two speakers: each of its stretches is compared with the other utterances; and pieces are split as the
    utterances are, of one utterance alone, or where several hold both speakers.

    Args:
        utterances: index and embedding of length one, [size]; the index is below 0, and different for each, for what
            is stored of the speaker, which is never an outlier.
        pieces: stretches of the utterances with enough speech, likewise.
        thresholds: pairs, ascending: utterances in a reference (1 first), and the cosine from which an utterance is
            accepted as of the reference's speaker.
        stretches: two successive windows of an utterance each, likewise; of those that have several windows.
    """
    counts = Counter(index for index, _ in stretches)
    raised = [(size, limit + LONG_ABOVE) for size, limit in thresholds]
    # What is stored has passed before, and its length is not known.
    comparable = all(index in counts or index < 0 for index, _ in utterances)
    found = _repeated(_split, utterances, raised if comparable else thresholds, [])
    found += _strange_stretches(utterances, stretches, thresholds, {each.utterance for each in found})
    compared = {index for index, count in counts.items() if count > 1 and len(utterances) > 1}
    found = _repeated(partial(_split_pieces, compared=compared), pieces, thresholds, found)
    return sorted(found, key=lambda each: each.utterance)


def _repeated(
    split: Callable[[NDArray[np.int_], Floats, Sequence[tuple[int, float]]], list[Outlier]],
    embeddings: Sequence[tuple[int, Floats]],
    thresholds: Sequence[tuple[int, float]],
    found: list[Outlier],
) -> list[Outlier]:
    """Return the outliers with those of `split`, which is repeated on the rest until it finds no more."""
    while True:
        out = {each.utterance for each in found}
        new = split(*_arrays([each for each in embeddings if each[0] not in out]), thresholds)
        if not new:
            return found
        found = found + new


def _strange_stretches(
    utterances: Sequence[tuple[int, Floats]],
    stretches: Sequence[tuple[int, Floats]],
    thresholds: Sequence[tuple[int, float]],
    out: set[int],
) -> list[Outlier]:
    """Return the utterances, but for those in `out`, with a stretch that is not of the other utterances' speaker."""
    names, whole = _arrays([each for each in utterances if each[0] not in out])
    found = []
    for name in np.unique(names[names >= 0]):
        others, own = names != name, [each for index, each in stretches if index == name]
        if not others.any() or len(own) < 2:
            continue
        cosine = float(min(each @ _direction(whole[others]) for each in own))
        limit = _threshold(thresholds, others) - STRETCH_BELOW
        if cosine < limit:
            found.append(Outlier(int(name), cosine, _within(whole @ whole.T, others), limit, within=True))
    return found


def _arrays(embeddings: Sequence[tuple[int, Floats]]) -> tuple[NDArray[np.int_], Floats]:
    return np.array([index for index, _ in embeddings]), np.array([each for _, each in embeddings], np.float64)


def _split(names: NDArray[np.int_], whole: Floats, thresholds: Sequence[tuple[int, float]]) -> list[Outlier]:
    """Return the utterances, with directions [n, size], of the smaller group, if that is another speaker's."""
    if len(names) < 2:
        return []
    cosines = whole @ whole.T
    small = _not_stored(_smaller_group(cosines), names < 0)
    limit = _threshold(thresholds, ~small)
    if _direction(whole[small]) @ _direction(whole[~small]) >= limit:
        return []
    others = _within(cosines, ~small)
    return [
        Outlier(int(names[index]), float(cosines[index, ~small].mean()), others, limit, within=False)
        for index in np.flatnonzero(small & (names >= 0))
    ]


def _split_pieces(
    utterances: NDArray[np.int_], embeddings: Floats, thresholds: Sequence[tuple[int, float]], compared: set[int]
) -> list[Outlier]:
    """Return the utterances with a piece in the smaller group, if that is another speaker's.

    Those in `compared`, whose stretches agree with the other utterances, must be several with a large contrast.
    """
    if len(embeddings) < 2:
        return []
    cosines = embeddings @ embeddings.T
    small = _not_stored(_smaller_group(cosines), utterances < 0)
    between, within = _means(cosines, small)
    alone = min(small.sum(), (~small).sum()) == 1
    limit = _threshold(thresholds, ~small) - (PIECE_BELOW if alone else PIECES_BELOW)
    far = _direction(embeddings[small]) @ _direction(embeddings[~small]) < limit
    contrast = within - between
    # A part of one utterance among others is what stretches are compared for.
    parted = set(utterances[small].tolist())
    closer = parted <= compared
    if closer and len(parted) < 2:
        return []
    if not ((far and not closer and contrast > CONTRAST) or contrast > LARGE_CONTRAST):
        return []
    found = []
    for utterance in np.unique(utterances[small & (utterances >= 0)]):
        own = utterances == utterance
        mixed = bool((own & ~small).any())
        first, second = (own & small, own & ~small) if mixed else (own, ~own)
        cosine = float(cosines[np.ix_(first, second)].mean())
        found.append(Outlier(int(utterance), cosine, _within(cosines, ~small), limit, mixed))
    return found


def _not_stored(small: NDArray[np.bool_], stored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the group with less of what is stored, as that is the speaker's."""
    return ~small if (small & stored).sum() > (~small & stored).sum() else small


def _threshold(thresholds: Sequence[tuple[int, float]], reference: NDArray[np.bool_]) -> float:
    return [threshold for size, threshold in thresholds if size <= reference.sum()][-1]


def _direction(embeddings: Floats) -> Floats:
    total = embeddings.sum(axis=0)
    unit: Floats = total / max(float(np.linalg.norm(total)), 1e-12)
    return unit


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
