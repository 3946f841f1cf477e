"""When two voices may be called the same: thresholds on the cosine between embeddings, set on the dev split.

An utterance is compared with a reference, the mean of the length-normalised embeddings of n utterances of one person:
of one, if two utterances are compared; of as many as were enrolled, else. The more there are, the higher the cosines,
of the same person as of others, so each n has its threshold.

Utterances are heard as calibration hears them: clean, and under interference. Pairs of different persons hold a
stranger to the network on at least one side, where the split has enough: those it has learnt to tell apart flatter it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from speakerlens.training.data.manifest import Clip, Corpus, spread
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.calibration import hear, talking
from speakerlens.training.evaluation.detection import threshold_for
from speakerlens.training.model.network import SpeakerNetwork

METHOD = (
    "cosine between the embedding of a dev utterance and the mean of the length-normalised embeddings of others of one "
    "person, each clean, and under each kind of interference at 20, 10 or 0 dB in turn; threshold: such that at most "
    "the asked share of the pairs of different persons reaches it, of whom one at least is a stranger, if there are any"
)

Strangers = Literal["held-out speakers", "known speakers"]

REFERENCES = (1, 2, 3, 5, 8)
"""Utterances in a reference that a threshold is sought for."""

# Of known speakers and of strangers: pairs grow with the square, and beyond, the figures change little.
_MOST_PERSONS, _MOST_CLIPS = 40, 8


@dataclass(frozen=True)
class ReferenceThreshold:
    """A threshold for references of one size.

    Attributes:
        utterances: in the reference.
        threshold: cosines that reach it are of the same person.
        same_pairs: pairs of the same person that were tried; different_pairs: of different persons.
        miss: share of the same person's pairs below the threshold; None where there were none.
    """

    utterances: int
    threshold: float
    same_pairs: int
    different_pairs: int
    miss: float | None


@dataclass(frozen=True)
class Verification:
    """Thresholds for verification.

    Attributes:
        thresholds: by size of the reference, 1 first; of those that the dev split has enough utterances for.
        false_acceptance: the share of different persons' pairs that was asked to reach a threshold, at most.
        strangers: who the different persons are; persons: how many talked, known ones and strangers.
    """

    thresholds: tuple[ReferenceThreshold, ...]
    false_acceptance: float
    strangers: Strangers
    persons: int


@dataclass(frozen=True)
class _Voices:
    """What is compared: directions [n, size], and who talked, of which clip, each by a number, [n]."""

    directions: Tensor
    persons: Tensor
    clips: Tensor
    strange: Tensor


def calibrate_verification(
    network: SpeakerNetwork,
    corpus: Corpus,
    speakers: Sequence[str],
    false_acceptance: float,
    advance: Callable[[], None] = lambda: None,
) -> Verification:
    """Choose the thresholds on the dev split.

    Args:
        network: in evaluation mode, on any device.
        corpus: its dev utterances must all be of `speakers`.
        speakers: in the order of the network's classes.
        false_acceptance: share of different persons' pairs that may be taken for one person's, between 0 and 1.
        advance: called after each batch.

    Raises:
        UserError: fewer than two persons talk in the dev split.
    """
    known, strangers = (_some(clips) for clips in talking(corpus, "dev", speakers))
    voices = _listen(network, corpus, known, strangers, advance)
    persons = int(voices.persons.max()) + 1
    if persons < 2:
        raise UserError(f"{corpus.root}: one person alone talks in its dev split; verification needs two to tell apart")
    found = (_threshold(voices, size, false_acceptance) for size in REFERENCES)
    whose: Strangers = "held-out speakers" if strangers else "known speakers"
    return Verification(tuple(each for each in found if each), false_acceptance, whose, persons)


def _some(clips: Sequence[Clip]) -> list[Clip]:
    """A bounded number of persons, and of clips of each."""
    by_person: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_person[str(clip.speaker)].append(clip)
    persons = sorted(by_person)
    step = max(1, len(persons) / _MOST_PERSONS)
    chosen = [persons[int(place * step)] for place in range(min(len(persons), _MOST_PERSONS))]
    return [clip for person in chosen for clip in spread(by_person[person], _MOST_CLIPS)]


def _listen(
    network: SpeakerNetwork,
    corpus: Corpus,
    known: Sequence[Clip],
    strangers: Sequence[Clip],
    advance: Callable[[], None],
) -> _Voices:
    names = sorted({str(clip.speaker) for clip in (*known, *strangers)})
    heard = [hear(network, corpus, "dev", clips, names, advance) for clips in (known, strangers) if clips]
    numbers = {clip: number for number, clip in enumerate((*known, *strangers))}
    return _Voices(
        directions=F.normalize(torch.cat([each.embeddings for each in heard]).double()),
        persons=torch.cat([each.labels for each in heard]),
        clips=torch.tensor([numbers[clip] for each in heard for clip in each.clips]),
        strange=torch.tensor([numbers[clip] >= len(known) for each in heard for clip in each.clips]),
    )


def _threshold(voices: _Voices, size: int, false_acceptance: float) -> ReferenceThreshold | None:
    """The threshold for references of a size; None where nobody has so many utterances that one can be tried."""
    same, different = [], []
    for rows in _references(voices, size):
        reference = F.normalize(voices.directions[rows].mean(dim=0), dim=0)
        cosines = voices.directions @ reference
        person = voices.persons[rows[0]]
        of_person = voices.persons == person
        # A pair of utterances is the same from either end.
        tried = torch.arange(len(cosines)) > rows[0] if size == 1 else torch.ones_like(of_person)
        same.append(cosines[tried & of_person & ~torch.isin(voices.clips, voices.clips[rows])])
        strange = voices.strange | voices.strange[rows[0]] | ~voices.strange.any()
        different.append(cosines[tried & ~of_person & strange])
    same_scores, different_scores = torch.cat(same or [torch.empty(0)]), torch.cat(different or [torch.empty(0)])
    if not len(different_scores):
        return None
    threshold = threshold_for(different_scores, false_acceptance)
    miss = float((same_scores < threshold).double().mean()) if len(same_scores) else None
    return ReferenceThreshold(size, threshold, len(same_scores), len(different_scores), miss)


def _references(voices: _Voices, size: int) -> Iterator[Tensor]:
    """Rows of each reference: `size` clips of one person, in as many ways as a clip was heard in.

    The clips of a reference are heard under interference of kinds that differ.
    """
    for person in sorted(set(voices.persons.tolist())):
        clips = sorted(set(voices.clips[voices.persons == person].tolist()))
        heard = {clip: (voices.clips == clip).nonzero().squeeze(1) for clip in clips}
        whole = len(clips) - len(clips) % size
        for group in (clips[start : start + size] for start in range(0, whole, size)):
            for way in range(len(heard[group[0]])):
                yield torch.stack([heard[clip][(way + place) % len(heard[clip])] for place, clip in enumerate(group)])
