"""Which utterances the maps are measured on, and how their mixtures reach the networks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from speakerlens.training.data.manifest import Clip, Corpus, Split
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import Condition, MixtureBatch, batches, mixtures
from speakerlens.training.evaluation.workers import batch_size

PROBES = 60

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


@dataclass(frozen=True)
class Probes:
    """Utterances to measure maps on.

    Attributes:
        corpus: where they and what is mixed into them come from.
        split: the part of it.
        speakers: the labels, in order.
        clips: the utterances, at least one; values for each utterance are in this order.
    """

    corpus: Corpus
    split: Split
    speakers: tuple[str, ...]
    clips: tuple[Clip, ...]


def choose_probes(corpus: Corpus, speakers: Sequence[str], limit: int = PROBES, split: Split = "test") -> Probes:
    """Choose utterances by going round the speakers: the first of each in the manifest, then the second, up to `limit`.

    Raises:
        UserError: the split has no utterances.
    """
    by_speaker: dict[str | None, list[Clip]] = {}
    for clip in corpus.utterances(split):
        by_speaker.setdefault(clip.speaker, []).append(clip)
    turns = zip_longest(*by_speaker.values())
    clips = tuple(clip for turn in turns for clip in turn if clip is not None)[:limit]
    if not clips:
        raise UserError(f"{corpus.root}: has no {split} utterances to measure maps on")
    return Probes(corpus, split, tuple(speakers), clips)


def heard(
    probes: Probes, conditions: Sequence[Condition], device: torch.device
) -> tuple[int, Iterator[tuple[MixtureBatch, ...]]]:
    """Mix the probes in batches, each batch in all conditions at once; gives the number of batches, and them."""
    size = batch_size(device)
    made = mixtures(probes.corpus, probes.split, probes.speakers, conditions, size, probes.clips)
    groups = zip(*[made] * len(conditions), strict=True)
    return len(batches(probes.clips, size)), groups


class Counter:
    """Counts batches for a `Progress`."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def __call__(self) -> None:
        """One more is done."""
        self._done += 1
        self._progress(self._done, self._total)
