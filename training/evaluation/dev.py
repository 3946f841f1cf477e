"""Accuracy on the dev split during training: the same utterances and mixtures for every variant and seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speakerlens.training.config import Config
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.corruption import corrupt, draw_layer, usable_kinds
from speakerlens.training.data.crops import CropReader
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.manifest import Clip, Corpus
from speakerlens.training.distributed import World
from speakerlens.training.model.network import SpeakerNetwork

_SEED = 20_305  # not the run's: variants and seeds are compared on the same mixtures


@dataclass(frozen=True)
class DevSet:
    """Crops of the dev split on the CPU, each set float32 [utterances, samples].

    corrupted: the same crops, each under one of the configured kinds of interference at one SNR of its range; None
        where the dev split can supply none of them.
    """

    labels: Tensor
    clean: Tensor
    corrupted: Tensor | None

    def accuracy(
        self, network: SpeakerNetwork, device: torch.device, batch_size: int, world: World
    ) -> dict[str, float]:
        """Return top-1 accuracy in percent on "clean" and "corrupted" crops; leaves the network in training mode.

        Of several processes each evaluates its share of the utterances.
        """
        sets = {"clean": self.clean} if self.corrupted is None else {"clean": self.clean, "corrupted": self.corrupted}
        network.eval()
        labels = self.labels[world.rank :: world.size]
        correct = []
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):  # shapes differ from those of training
            for audio in sets.values():
                parts = torch.split(audio[world.rank :: world.size], batch_size)
                best = [network(part.to(device))[0].argmax(dim=1).cpu() for part in parts if len(part)]
                correct.append((torch.cat([*best, labels[:0]]) == labels).sum())
        network.train()
        shares = world.mean(torch.stack(correct).double()) * world.size / len(self.labels)
        return {name: 100.0 * share for name, share in zip(sets, shares.tolist(), strict=True)}


def make_dev_set(corpus: Corpus, config: Config) -> DevSet | None:
    """Draw the dev set of a corpus; None if it has no dev split."""
    clips = corpus.utterances("dev")
    if not clips:
        return None
    rng = np.random.default_rng(_SEED)
    chosen = _choose(clips, config.intervals.dev_utterances, rng)
    crops = CropReader(chosen, round(config.data.crop_seconds * SAMPLE_RATE), cache_megabytes=0)
    clean = torch.from_numpy(np.stack([crops.read(clip, rng.random())[0] for clip in chosen]))
    speakers = [clip.speaker or "" for clip in chosen]
    labels = torch.tensor([corpus.speakers.index(speaker) for speaker in speakers])
    source = InterferenceSource(corpus, "dev", config.interference.talkers)
    usable = usable_kinds(source, config.interference)
    if not usable:
        return DevSet(labels, clean, None)
    rngs = rng.spawn(len(chosen))
    corruptions = [
        (draw_layer(usable[index % len(usable)], config.interference, row_rng),) for index, row_rng in enumerate(rngs)
    ]
    return DevSet(labels, clean, corrupt(clean, speakers, corruptions, source, rngs).audio)


def _choose(clips: Sequence[Clip], count: int, rng: np.random.Generator) -> list[Clip]:
    """Choose up to `count` clips at random."""
    return [clips[index] for index in rng.permutation(len(clips))[:count]]
