"""The conditions of the evaluation, and the mixtures that every variant is tested on.

The mixture of an utterance in a condition depends on a fixed seed, the utterance and the condition only: not on the
batch, the order of work, the variant, the device, or the folder of the corpus. For one utterance and one kind, all SNRs
have the same interference waveform at different levels. Two kinds at once have the room and the noise of each alone.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speakerlens.training.data.audio import read_sound
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.manifest import Clip, Corpus, Split
from speakerlens.training.data.mixing import KINDS, Mixture, late_reverberation, mix, scale_to_snr
from speakerlens.training.errors import UserError

SNRS_DB = (20.0, 15.0, 10.0, 5.0, 0.0, -5.0)
CLEAN_KIND = "clean"
NOISE_IN_ROOM = "reverb+noise"
"""Noise at each SNR relative to the dry speech, in a room whose direct-to-reverberant ratio is `ROOM_RATIO_DB`."""

ROOM_RATIO_DB = 0.0
"""Typical direct-to-reverberant ratio two metres from a talker in a living room or office."""

CONDITION_KINDS = (*KINDS, NOISE_IN_ROOM)
SEED = 2305_16070

LABELS = {
    CLEAN_KIND: "Clean",
    "noise": "Noise",
    "music": "Music",
    "babble": "Babble",
    "speaker": "Non-target speaker",
    "reverb": "Reverberation",
    NOISE_IN_ROOM: "Reverberation and noise",
}

_NEEDS = {
    "noise": "clips of kind noise",
    "music": "clips of kind music",
    "babble": "three or more talkers besides the target",
    "speaker": "a talker besides the target",
    "reverb": "room impulse responses",
}
_BATCH_SECONDS = 256.0  # of padded audio: bounds memory where utterances are minutes long


@dataclass(frozen=True)
class Condition:
    """Interference and level of a mixture.

    Attributes:
        kind: "clean" or one of `CONDITION_KINDS`.
        snr_db: signal-to-noise ratio in decibels; for "reverb" the direct-to-reverberant ratio; None for "clean".
    """

    kind: str
    snr_db: float | None

    def __str__(self) -> str:
        """Return the name used in progress displays and messages."""
        return self.kind if self.snr_db is None else f"{self.kind} {self.snr_db:g} dB"


CLEAN = Condition(CLEAN_KIND, None)


def ratio_name(kind: str) -> str:
    """Return the name of the ratio that a kind of interference is measured by."""
    return "direct-to-reverberant ratio" if kind == "reverb" else "SNR"


def grid(kinds: Sequence[str] = CONDITION_KINDS) -> tuple[Condition, ...]:
    """Return clean speech, and each kind of interference at each ratio."""
    return (CLEAN, *(Condition(kind, snr_db) for kind in kinds for snr_db in SNRS_DB))


def supplied_grid(corpus: Corpus, split: Split) -> tuple[tuple[Condition, ...], dict[str, str]]:
    """Return the conditions that a corpus can supply, and for each missing kind the reason."""
    supplied = InterferenceSource(corpus, split).kinds
    lacking = {kind: [part for part in parts(kind) if part not in supplied] for kind in CONDITION_KINDS}
    left_out = {
        kind: f"the {split} split has no {' and no '.join(_NEEDS[part] for part in parts)}"
        for kind, parts in lacking.items()
        if parts
    }
    return grid([kind for kind in CONDITION_KINDS if kind not in left_out]), left_out


@dataclass(frozen=True)
class MixtureBatch:
    """Utterances in one condition, padded with zeros to the longest of them.

    Attributes:
        condition: the one they are all in.
        mixture: `audio`, `speech` and `interference`, each float32 [B, N]; audio = speech + interference.
        lengths: valid samples, int64 [B].
        labels: index of each true speaker, int64 [B].
        indices: position of each utterance in the given sequence, int64 [B].
        clips: the utterances.
    """

    condition: Condition
    mixture: Mixture
    lengths: Tensor
    labels: Tensor
    indices: Tensor
    clips: tuple[Clip, ...]

    def to(self, device: torch.device) -> Self:
        """Move everything to a device."""
        moved = Mixture(*(part.to(device) for part in self.mixture))
        tensors = (self.lengths.to(device), self.labels.to(device), self.indices.to(device))
        return type(self)(self.condition, moved, *tensors, self.clips)


def batches(clips: Sequence[Clip], batch_size: int) -> list[list[int]]:
    """Return positions of clips in batches of similar length, shortest first: little padding, bounded memory."""
    order = sorted(range(len(clips)), key=lambda index: clips[index].duration)
    result: list[list[int]] = []
    for index in order:
        # The newest is the longest of its batch, so it sets the padded length.
        fits = result and (len(result[-1]) + 1) * clips[index].duration <= _BATCH_SECONDS
        if fits and len(result[-1]) < batch_size:
            result[-1].append(index)
        else:
            result.append([index])
    return result


def mixtures(
    corpus: Corpus,
    split: Split,
    speakers: Sequence[str],
    conditions: Sequence[Condition],
    batch_size: int,
    utterances: Sequence[Clip] | None = None,
) -> Iterator[MixtureBatch]:
    """Make the mixtures of every utterance in every condition, on the CPU.

    All conditions of one batch of utterances come before the next batch, so that speech is read, and interference of a
    kind drawn, once for all ratios.

    Args:
        corpus: where speech and interference come from.
        split: the part of it.
        speakers: the labels, in order.
        conditions: those to mix.
        batch_size: most utterances in a batch.
        utterances: clips of that split; None means all, in the manifest's order.

    Yields:
        `len(batches(utterances, batch_size)) * len(conditions)` batches.

    Raises:
        UserError: an utterance is not of one of `speakers`, cannot be read, or the split cannot supply a kind.
    """
    chosen = corpus.utterances(split) if utterances is None else tuple(utterances)
    label_of = {speaker: label for label, speaker in enumerate(speakers)}
    for clip in chosen:
        if clip.speaker not in label_of:
            raise UserError(f"{clip.path}: its speaker {clip.speaker} is not among the {len(speakers)} known ones")
    source = InterferenceSource(corpus, split)
    by_kind = [(kind, list(group)) for kind, group in groupby(conditions, key=lambda condition: condition.kind)]
    for indices in batches(chosen, batch_size):
        clips = tuple(chosen[index] for index in indices)
        speech = [torch.from_numpy(read_sound(clip.path, clip.start, clip.duration)) for clip in clips]
        lengths = torch.tensor([len(row) for row in speech])
        labels = torch.tensor([label_of[str(clip.speaker)] for clip in clips])
        for kind, group in by_kind:
            sounds = [
                [draw_layer(corpus, source, part, clip, row) for part in parts(kind)]
                for clip, row in zip(clips, speech, strict=True)
            ]
            for condition in group:
                rows = [mix_layers(row, layers, condition.snr_db) for row, layers in zip(speech, sounds, strict=True)]
                mixture = Mixture(*(pad_sequence(list(part), batch_first=True) for part in zip(*rows, strict=True)))
                yield MixtureBatch(condition, mixture, lengths, labels, torch.tensor(indices), clips)


def draw_layer(corpus: Corpus, source: InterferenceSource, kind: str, clip: Clip, speech: Tensor) -> Tensor:
    """Draw the interference waveform [N] of an utterance [N] for one of `KINDS`, at an arbitrary level."""
    waveform = torch.from_numpy(source.draw(kind, len(speech), generator(corpus, kind, clip), clip.speaker))
    return late_reverberation(speech[None], waveform[None])[0] if kind == "reverb" else waveform


def generator(corpus: Corpus, kind: str, clip: Clip) -> np.random.Generator:
    """Return the random generator of an utterance under a kind of interference, the same on every machine."""
    # The name in the manifest; os.path, because Path.relative_to cannot walk up before Python 3.12.
    name = Path(os.path.relpath(clip.path, corpus.root)).as_posix()
    key = f"{SEED}|{kind}|{name}|{clip.start!r}|{clip.duration!r}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()))


def parts(kind: str) -> tuple[str, ...]:
    """Return the `KINDS` in a condition's kind, the one at the condition's ratio last; none for "clean"."""
    return () if kind == CLEAN_KIND else tuple(kind.split("+"))


def mix_layers(speech: Tensor, layers: Sequence[Tensor], snr_db: float | None) -> Mixture:
    """Mix one utterance [N] with layers [N]; not as a padded batch, whose sums round differently."""
    if snr_db is None:
        return Mixture(speech, speech, torch.zeros_like(speech))
    ratios = [ROOM_RATIO_DB] * (len(layers) - 1) + [snr_db]
    scaled = [
        scale_to_snr(speech[None], layer[None], torch.tensor([ratio]))
        for layer, ratio in zip(layers, ratios, strict=True)
    ]
    return Mixture(*(part[0] for part in mix(speech[None], torch.stack(scaled).sum(dim=0))))
