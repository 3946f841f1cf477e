"""Thresholds for speaker verification: on the cosine between embeddings, set on the dev split.

An utterance is compared with a reference, the mean of the length-normalised embeddings of n utterances of one person
(one where two utterances are compared, else as many as were enrolled). Cosines rise with n, for the same person as for
others, so each n has its own threshold.

Utterances are tested clean and under interference (`training.evaluation.predictions`). Pairs of different persons
contain at least one out-of-set speaker, where the split has enough of them: pairs of known speakers, whom the network
has learned to separate, would be optimistic.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from speakerlens.training.data.manifest import Clip, Corpus, spread
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.metrics import threshold_for
from speakerlens.training.evaluation.predictions import SplitPredictions

METHOD = (
    "cosine between the embedding of a dev utterance and the mean of the length-normalised embeddings of others of one "
    "person, each clean, and under each kind of interference at 20, 10 or 0 dB in turn; threshold: such that at most "
    "the given share of the pairs of different persons reaches it; at least one of the two is out-of-set, if possible"
)

Strangers = Literal["held-out speakers", "known speakers"]
"""Who the different persons are; the names are part of the bundle format."""

REFERENCES = (1, 2, 3, 5, 8)
"""Sizes of a reference, in utterances, that get a threshold."""

# Of known and of out-of-set speakers: the number of pairs grows with the square, the figures change little.
_MOST_PERSONS, _MOST_CLIPS = 40, 8


@dataclass(frozen=True)
class ReferenceThreshold:
    """Threshold for references of one size.

    Attributes:
        utterances: in the reference.
        threshold: cosines that reach it count as the same person.
        same_pairs: tested pairs of the same person; different_pairs: of different persons.
        miss: share of the same person's pairs below the threshold; None without such pairs.
    """

    utterances: int
    threshold: float
    same_pairs: int
    different_pairs: int
    miss: float | None


@dataclass(frozen=True)
class Verification:
    """Thresholds for verification. The fields are part of the bundle format.

    Attributes:
        thresholds: by size of the reference, 1 first; sizes with too few dev utterances are left out.
        false_acceptance: the share of different persons' pairs that may reach a threshold.
        strangers: who the different persons are; persons: how many there are, known and out-of-set.
    """

    thresholds: tuple[ReferenceThreshold, ...]
    false_acceptance: float
    strangers: Strangers
    persons: int


@dataclass(frozen=True)
class _Embeddings:
    """Length-normalised embeddings, float64 [n, size], with the index of each one's person and clip, int64 [n].

    `out_of_set` says whose person the network was not trained on, bool [n].
    """

    directions: Tensor
    persons: Tensor
    clips: Tensor
    out_of_set: Tensor


def calibrate_verification(
    corpus: Corpus, predicted: Sequence[SplitPredictions], classes: int, false_acceptance: float
) -> Verification:
    """Choose the thresholds on the dev split.

    Args:
        corpus: whose dev split it is.
        predicted: from `predict_split` on that split.
        classes: of the network; 0 for one without a classifier, which was trained on none of these speakers.
        false_acceptance: share of different persons' pairs that may be accepted, between 0 and 1.

    Raises:
        UserError: the dev split has fewer than two persons.
    """
    embedded = _embeddings(predicted)
    persons = int(embedded.persons.max()) + 1
    if persons < 2:
        raise UserError(f"{corpus.root}: its dev split has one person only; verification needs at least two")
    thresholds = (_threshold(embedded, size, false_acceptance) for size in REFERENCES)
    whose: Strangers = "held-out speakers" if len(predicted) > 1 or not classes else "known speakers"
    return Verification(tuple(each for each in thresholds if each), false_acceptance, whose, persons)


def _limit(clips: Sequence[Clip]) -> list[Clip]:
    """Return clips of a bounded number of persons, and a bounded number of each."""
    by_person: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_person[str(clip.speaker)].append(clip)
    persons = sorted(by_person)
    step = max(1, len(persons) / _MOST_PERSONS)
    chosen = [persons[int(place * step)] for place in range(min(len(persons), _MOST_PERSONS))]
    return [clip for person in chosen for clip in spread(by_person[person], _MOST_CLIPS)]


def _embeddings(predicted: Sequence[SplitPredictions]) -> _Embeddings:
    """Return the embeddings of a bounded number of clips, with consecutive numbers for persons and clips."""
    chosen = [_limit(sorted(set(each.clips), key=lambda clip: (clip.path, clip.start))) for each in predicted]
    numbers = {clip: number for number, clip in enumerate(clip for clips in chosen for clip in clips)}
    names = sorted({str(clip.speaker) for clip in numbers})
    rows = [(clip, group, row) for group, each in enumerate(predicted) for row, clip in enumerate(each.clips)]
    kept = [(clip, group, row) for clip, group, row in rows if clip in numbers]
    embeddings = torch.stack([predicted[group].embeddings[row] for _, group, row in kept])
    return _Embeddings(
        directions=F.normalize(embeddings.double()),
        persons=torch.tensor([names.index(str(clip.speaker)) for clip, _, _ in kept]),
        clips=torch.tensor([numbers[clip] for clip, _, _ in kept]),
        out_of_set=torch.tensor([group > 0 for _, group, _ in kept]),
    )


def _threshold(embedded: _Embeddings, size: int, false_acceptance: float) -> ReferenceThreshold | None:
    """Return the threshold for references of a size; None where no person has enough utterances."""
    same, different = [], []
    for rows in _references(embedded, size):
        reference = F.normalize(embedded.directions[rows].mean(dim=0), dim=0)
        cosines = embedded.directions @ reference
        person = embedded.persons[rows[0]]
        of_person = embedded.persons == person
        # Each pair of single utterances counts once.
        tested = torch.arange(len(cosines)) > rows[0] if size == 1 else torch.ones_like(of_person)
        same.append(cosines[tested & of_person & ~torch.isin(embedded.clips, embedded.clips[rows])])
        counted = embedded.out_of_set | embedded.out_of_set[rows[0]] | ~embedded.out_of_set.any()
        different.append(cosines[tested & ~of_person & counted])
    same_scores, different_scores = torch.cat(same or [torch.empty(0)]), torch.cat(different or [torch.empty(0)])
    if not len(different_scores):
        return None
    threshold = threshold_for(different_scores, false_acceptance)
    miss = float((same_scores < threshold).double().mean()) if len(same_scores) else None
    return ReferenceThreshold(size, threshold, len(same_scores), len(different_scores), miss)


def _references(embedded: _Embeddings, size: int) -> Iterator[Tensor]:
    """Yield the rows of each reference: `size` clips of one person, in different conditions, int64 [size]."""
    for person in sorted(set(embedded.persons.tolist())):
        clips = sorted(set(embedded.clips[embedded.persons == person].tolist()))
        rows_of = {clip: (embedded.clips == clip).nonzero().squeeze(1) for clip in clips}
        whole = len(clips) - len(clips) % size
        for group in (clips[start : start + size] for start in range(0, whole, size)):
            for way in range(len(rows_of[group[0]])):
                yield torch.stack(
                    [rows_of[clip][(way + place) % len(rows_of[clip])] for place, clip in enumerate(group)]
                )
