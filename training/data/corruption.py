"""Corrupt the rows of a batch: each row has its own random generator; mixing runs on the device of the speech.

Rows are independent: a process that makes only its share of a batch gets the same rows.
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
    """One kind of interference and its SNR in dB; for "reverb", the direct-to-reverberant ratio."""

    kind: str
    snr_db: float

    def __str__(self) -> str:
        """Return the text used in messages."""
        return f"{self.kind} at {self.snr_db:.1f} dB"


Corruption = tuple[Layer, ...]
"""Everything that is added to one row, each layer at its own SNR to the dry speech. With "reverb" among them, the SNR
of the others refers to the direct sound; in Kaldi's augmentation, to the direct sound and early reflections."""


def usable_kinds(source: InterferenceSource, config: InterferenceConfig) -> tuple[InterferenceKind, ...]:
    """Return the configured kinds of interference that a source can supply."""
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
    """Draw the SNR of a kind, uniformly in dB within its configured range."""
    return Layer(kind, float(rng.uniform(*config.snr_db[kind])))


def corrupt(
    speech: Tensor,
    speakers: Sequence[str],
    corruptions: Sequence[Corruption],
    source: InterferenceSource,
    rngs: Sequence[np.random.Generator],
) -> Mixture:
    """Corrupt a batch of speech, each row by its own corruption.

    Args:
        speech: float32 [B, N] in [-1, 1], on the device to mix on.
        speakers: speaker of each row.
        corruptions: of each row, of kinds in `source.kinds`.
        source: supplies the interference.
        rngs: each row's only source of randomness.

    Returns:
        The mixture and its two parts, each [B, N].

    Raises:
        UserError: the source cannot supply a kind.
    """
    if not len(speech) == len(speakers) == len(corruptions) == len(rngs):
        raise ValueError(f"{len(speech)} rows, {len(speakers)} speakers, {len(corruptions)} corruptions, {len(rngs)}")
    interference = torch.zeros_like(speech)
    for place in range(max(map(len, corruptions), default=0)):
        chosen = [row for row, layers in enumerate(corruptions) if place < len(layers)]
        layers = [corruptions[row][place] for row in chosen]
        drawn = [
            source.draw(layer.kind, speech.shape[1], rngs[row], speakers[row])
            for row, layer in zip(chosen, layers, strict=True)
        ]
        rows = torch.tensor(chosen, device=speech.device)
        ratios = torch.tensor([layer.snr_db for layer in layers], device=speech.device)
        dry = speech[rows]
        interference[rows] += scale_to_snr(dry, _added(dry, [layer.kind for layer in layers], drawn), ratios)
    return mix(speech, interference)


def _added(speech: Tensor, kinds: Sequence[str], drawn: Sequence[NDArray[np.float32]]) -> Tensor:
    """Return the unscaled interference of each row of `speech` [B, N]; impulse responses become reverberation."""
    added = np.zeros(speech.shape, dtype=np.float32)
    rooms = [row for row, kind in enumerate(kinds) if kind == "reverb"]
    for row, waveform in enumerate(drawn):
        if row not in rooms:
            added[row] = waveform
    interference = torch.from_numpy(added).to(speech.device)
    if rooms:
        responses = torch.from_numpy(np.stack([drawn[row] for row in rooms])).to(speech.device)
        interference[rooms] = late_reverberation(speech[rooms], responses)
    return interference
