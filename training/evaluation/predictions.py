"""Network outputs for the utterances of a split, clean and under interference, for calibration and verification.

Every utterance is tested clean and once under each kind of interference that its split can supply, at 20, 10 or 0 dB in
turn. Out-of-set speakers are the named talkers from outside the speaker set (clips of kind "speech"). With fewer than
three of them a threshold would describe those voices only, so they are left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, Clip, Corpus, Split, spread
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import CLEAN, Condition, batches, mixtures, supplied_grid
from speakerlens.training.evaluation.workers import batch_size
from speakerlens.training.model.network import SpeakerNetwork

FEWEST_OUT_OF_SET = 3
"""Out-of-set speakers that a split needs for its thresholds to rest on them."""

_SNRS_DB = (20.0, 10.0, 0.0)
_MOST_UTTERANCES = 1000  # of a split: with more, the figures change less than between two sets of speakers


class SplitPredictions(NamedTuple):
    """Network outputs for the mixtures of some clips.

    logits: [n, classes]; embeddings: [n, size]; labels: the speakers, [n]; clips: the source of each mixture;
    kinds: the interference in each.
    """

    logits: Tensor
    embeddings: Tensor
    labels: Tensor
    clips: tuple[Clip, ...]
    kinds: tuple[str, ...]


def choose_clips(corpus: Corpus, split: Split, speakers: Sequence[str]) -> tuple[Sequence[Clip], Sequence[Clip]]:
    """Return the known speakers' utterances of a split, and the out-of-set clips, cut to the longest of the former.

    There are no out-of-set clips where fewer than `FEWEST_OUT_OF_SET` speakers have one.
    """
    known = spread(corpus.utterances(split), _MOST_UTTERANCES)
    longest = max((clip.duration for clip in known), default=0.0)
    out_of_set = [
        replace(clip, duration=min(clip.duration, longest))
        for clip in corpus.interference("speech", split)
        if clip.speaker is not None and clip.speaker not in speakers and clip.duration >= SHORTEST_UTTERANCE
    ]
    enough = len({clip.speaker for clip in out_of_set}) >= FEWEST_OUT_OF_SET
    return known, spread(out_of_set, _MOST_UTTERANCES) if enough else []


def prediction_steps(corpus: Corpus, split: Split, speakers: Sequence[str], device: torch.device) -> int:
    """Return the number of batches in `predict_split`."""
    return sum(
        len(batches(group, batch_size(device))) * len(conditions)
        for clips in choose_clips(corpus, split, speakers)
        for group, conditions in _plan(corpus, split, clips)
    )


def predict_split(
    network: SpeakerNetwork, corpus: Corpus, split: Split, speakers: Sequence[str], advance: Callable[[], None]
) -> list[SplitPredictions]:
    """Return predictions for the known speakers of a split, and for the out-of-set ones where there are enough.

    Labels count from 0 in `speakers`, and in the sorted names of the out-of-set speakers.

    Args:
        network: in evaluation mode, on any device.
        corpus: its utterances of the split must all be of `speakers`.
        split: whose clips are chosen, as in `choose_clips`.
        speakers: in the order of the network's classes.
        advance: called after each of `prediction_steps` batches.

    Raises:
        UserError: the split is empty, or has an utterance of a speaker who is not among `speakers`.
    """
    known, out_of_set = choose_clips(corpus, split, speakers)
    if not known:
        raise UserError(f"{corpus.root}: its {split} split is empty; calibration needs at least one utterance there")
    predicted = [predict(network, corpus, split, known, speakers, advance)]
    if out_of_set:
        names = sorted({str(clip.speaker) for clip in out_of_set})
        predicted.append(predict(network, corpus, split, out_of_set, names, advance))
    return predicted


def predict(
    network: SpeakerNetwork,
    corpus: Corpus,
    split: Split,
    clips: Sequence[Clip],
    names: Sequence[str],
    advance: Callable[[], None],
) -> SplitPredictions:
    """Run a network on clips of a split, whose speakers are among `names`; `advance` is called after each batch."""
    device = next(network.parameters()).device
    logits, embeddings, labels = [], [], []
    sources: list[Clip] = []
    kinds: list[str] = []
    with torch.inference_mode():
        for group, conditions in _plan(corpus, split, clips):
            for made in mixtures(corpus, split, names, conditions, batch_size(device), group):
                batch = made.to(device)
                outputs = network(batch.mixture.audio, batch.lengths)
                logits.append(outputs[0].cpu())
                embeddings.append(outputs[1].cpu())
                labels.append(made.labels)
                sources += made.clips
                kinds += [made.condition.kind] * len(made.labels)
                advance()
    return SplitPredictions(torch.cat(logits), torch.cat(embeddings), torch.cat(labels), tuple(sources), tuple(kinds))


def _plan(
    corpus: Corpus, split: Split, clips: Sequence[Clip]
) -> Iterator[tuple[Sequence[Clip], tuple[Condition, ...]]]:
    """Yield groups of clips with their conditions: clean, and each kind of interference at a ratio in turn."""
    conditions, _ = supplied_grid(corpus, split)
    kinds = list(dict.fromkeys(condition.kind for condition in conditions if condition != CLEAN))
    for turn in range(len(_SNRS_DB)):
        group = clips[turn :: len(_SNRS_DB)]
        ratios = (_SNRS_DB[(turn + place) % len(_SNRS_DB)] for place in range(len(kinds)))
        yield group, (CLEAN, *(Condition(kind, ratio) for kind, ratio in zip(kinds, ratios, strict=True)))
