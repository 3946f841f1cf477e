"""Enrolled speakers of a corpus, in place of the classes of a network that has none: for probes and baseline."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from speakerlens.measures.probes import Voices
from speakerlens.training.data.manifest import Clip, Corpus, Split, spread
from speakerlens.training.evaluation.conditions import CLEAN, mixtures
from speakerlens.training.model.network import SpeakerNetwork

FILE = "probes/voices.npy"
_SPLITS: tuple[Split, ...] = ("train", "dev")
_SPEAKERS, _UTTERANCES = 200, 5
_BATCH = 8


def enrol_voices(network: SpeakerNetwork, corpus: Corpus) -> Voices | None:
    """Enrol the speakers of a corpus from utterances that are not of its test split.

    Args:
        network: embeds; in evaluation mode, on the CPU.
        corpus: its speakers with at least one such utterance are enrolled, at most 200, from at most 5 each.

    Returns:
        The mean direction of each speaker's embeddings; None for fewer than two speakers.
    """
    for split in _SPLITS:
        clips = _chosen(corpus, split)
        names = tuple(sorted({str(clip.speaker) for clip in clips}))
        if len(names) >= 2:
            return _enrolled(network, corpus, split, clips, names)
    return None


def write_voices(folder: Path, voices: Voices) -> dict[str, Any]:
    """Write the voices into a bundle's folder; return `probes.voices` of `bundle.json`."""
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    np.save(folder / FILE, voices.directions, allow_pickle=False)
    return {"file": FILE, "speakers": list(voices.speakers)}


def _chosen(corpus: Corpus, split: Split) -> list[Clip]:
    of_speaker: dict[str, list[Clip]] = defaultdict(list)
    for clip in corpus.utterances(split):
        of_speaker[str(clip.speaker)].append(clip)
    names = sorted(of_speaker)[:_SPEAKERS]
    return [clip for name in names for clip in spread(of_speaker[name], _UTTERANCES)]


def _enrolled(
    network: SpeakerNetwork, corpus: Corpus, split: Split, clips: list[Clip], names: tuple[str, ...]
) -> Voices:
    sums = torch.zeros(len(names), network.encoder.seg_1.out_features)
    with torch.inference_mode():
        for batch in mixtures(corpus, split, names, (CLEAN,), _BATCH, clips):
            embedding = network.activations(batch.mixture.audio, batch.lengths).embedding
            sums.index_add_(0, batch.labels, F.normalize(embedding))
    return Voices(names, F.normalize(sums).numpy())
