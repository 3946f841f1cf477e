"""What corrupts a row of a batch: drawn by a generator of the row's own, then mixed in on the speech's device.

No row depends on another: whoever realises only some rows of a batch, such as one process of several, gets the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.training.config import InterferenceConfig, InterferenceKind
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.mixing import Mixture, late_reverberation, mix, scale_to_snr


class Layer(NamedTuple):
    """One kind of interference at a ratio in decibels to the speech; for "reverb", the direct-to-reverberant ratio."""

    kind: str
    snr_db: float

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.kind} at {self.snr_db:.1f} dB"


Corruption = tuple[Layer, ...]
"""All that is added to one row, each layer at its own ratio to the dry speech. So with "reverb" among them the others
are set against the direct sound, as Kaldi's augmentation sets them against the direct sound and early reflections."""


def usable_kinds(source: InterferenceSource, config: InterferenceConfig) -> tuple[InterferenceKind, ...]:
    """List the configured kinds of interference that a source can supply."""
    return tuple(kind for kind in config.snr_db if kind in source.kinds)


def draw_corruption(
    kinds: Sequence[InterferenceKind], config: InterferenceConfig, rng: np.random.Generator
) -> Corruption:
    """Draw one of `kinds` by the configured weights, or two different ones for the share that combines two."""
    weights = np.array([config.weights.get(kind, 1.0) for kind in kinds])
    count = 2 if len(kinds) > 1 and rng.random() < config.combine else 1
    chosen = rng.choice(len(kinds), size=count, replace=False, p=weights / weights.sum())
    return tuple(draw_layer(kinds[index], config, rng) for index in chosen)


def draw_layer(kind: InterferenceKind, config: InterferenceConfig, rng: np.random.Generator) -> Layer:
    """Draw the ratio of a kind, uniformly in decibels within its configured range."""
    return Layer(kind, float(rng.uniform(*config.snr_db[kind])))


def corrupt(
    speech: Tensor,
    speakers: Sequence[str],
    corruptions: Sequence[Corruption],
    source: InterferenceSource,
    rngs: Sequence[np.random.Generator],
) -> Mixture:
    """Corrupt a batch of speech, each row by a corruption of its own.

    Args:
        speech: [B, N] in [-1, 1], on the device where mixing shall happen.
        speakers: who talks in each row.
        corruptions: what is added to each row, of `source.kinds`.
        source: where interference comes from.
        rngs: for each row its only source of randomness.

    Raises:
        UserError: the source cannot supply a kind.
    """
    if not len(speech) == len(speakers) == len(corruptions) == len(rngs):
        raise ValueError(f"{len(speech)} rows, {len(speakers)} speakers, {len(corruptions)} corruptions, {len(rngs)}")
    interference = torch.zeros_like(speech)
    for place in range(max(map(len, corruptions), default=0)):
        chosen = [row for row, layers in enumerate(corruptions) if place < len(layers)]
        layers = [corruptions[row][place] for row in chosen]
        sounds = [
            source.draw(layer.kind, speech.shape[1], rngs[row], speakers[row])
            for row, layer in zip(chosen, layers, strict=True)
        ]
        rows = torch.tensor(chosen, device=speech.device)
        ratios = torch.tensor([layer.snr_db for layer in layers], device=speech.device)
        dry = speech[rows]
        interference[rows] += scale_to_snr(dry, _heard(dry, [layer.kind for layer in layers], sounds), ratios)
    return mix(speech, interference)


def _heard(speech: Tensor, kinds: Sequence[str], sounds: Sequence[NDArray[np.float32]]) -> Tensor:
    """Compute what is added to each row of `speech` [B, N], at any level: impulse responses become reverberation."""
    added = np.zeros(speech.shape, dtype=np.float32)
    rooms = [row for row, kind in enumerate(kinds) if kind == "reverb"]
    for row, sound in enumerate(sounds):
        if row not in rooms:
            added[row] = sound
    interference = torch.from_numpy(added).to(speech.device)
    if rooms:
        responses = torch.from_numpy(np.stack([sounds[row] for row in rooms])).to(speech.device)
        interference[rooms] = late_reverberation(speech[rooms], responses)
    return interference
