"""The utterances that maps are measured on, and their mixtures."""

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
"""Called with the number of finished steps and the total."""


@dataclass(frozen=True)
class Probes:
    """Utterances to measure maps on.

    Attributes:
        corpus: source of the utterances and of the interference.
        split: the part of it.
        speakers: the labels, in order.
        clips: the utterances, at least one; values for each utterance are in this order.
    """

    corpus: Corpus
    split: Split
    speakers: tuple[str, ...]
    clips: tuple[Clip, ...]


def choose_probes(corpus: Corpus, speakers: Sequence[str], limit: int = PROBES, split: Split = "test") -> Probes:
    """Choose up to `limit` utterances, round-robin over the speakers, in the order of the manifest.

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


def mixture_groups(
    probes: Probes, conditions: Sequence[Condition], device: torch.device
) -> tuple[int, Iterator[tuple[MixtureBatch, ...]]]:
    """Return the number of batches of probes, and an iterator over them: each batch in all conditions."""
    size = batch_size(device)
    made = mixtures(probes.corpus, probes.split, probes.speakers, conditions, size, probes.clips)
    groups = zip(*[made] * len(conditions), strict=True)
    return len(batches(probes.clips, size)), groups


class Counter:
    """Count batches for a `Progress`."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def __call__(self) -> None:
        """Count one more batch and report it."""
        self._done += 1
        self._progress(self._done, self._total)
