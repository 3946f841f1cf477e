"""Faithfulness of maps by their sound: what a network answers for the sound that a map keeps, and for the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from speakerlens.measures.listening import Confidences, Listened, kept, listened
from speakerlens.training.evaluation.conditions import Condition, MixtureBatch
from speakerlens.training.evaluation.maps.attributions import (
    ENERGY,
    RANDOM_COARSE,
    STAGES_AND_FUSED,
    attribute,
    log_energy,
    random_maps,
)
from speakerlens.training.evaluation.maps.probes import Counter, Probes, Progress, mixture_groups
from speakerlens.training.evaluation.workers import Networks, device_and_front_end, for_each
from speakerlens.training.model.front_end import FRAME_LENGTH, FRAME_SHIFT
from speakerlens.training.model.network import SpeakerNetwork

LISTENED_MAPS = (*STAGES_AND_FUSED, ENERGY, RANDOM_COARSE)


@dataclass(frozen=True)
class ListenedMaps:
    """How faithful one method's maps are by their sound, for one network in one condition.

    Attributes:
        network: its name; kind, snr_db: the condition; method: of `LISTENED_MAPS`.
        measures: over the utterances, of the class that the network names.
    """

    network: str
    kind: str
    snr_db: float | None
    method: str
    measures: Listened


def listened_maps(
    networks: Networks, probes: Probes, conditions: Sequence[Condition], progress: Progress
) -> tuple[ListenedMaps, ...]:
    """Measure the sound of each method's maps, for each network: two more answers for each utterance and method."""
    device, _ = device_and_front_end(networks)
    # Probabilities of the whole, of what is kept and of what is removed, and whether the class is the same.
    found = np.full((len(networks), len(conditions), len(LISTENED_MAPS), 4, len(probes.clips)), np.nan)

    def measure(group: Sequence[MixtureBatch]) -> None:
        for column, batch in enumerate(made.to(device) for made in group):
            for row, network in enumerate(networks.values()):
                found[row, column, ..., batch.indices.cpu().numpy()] = _confidences(network, batch)

    total, groups = mixture_groups(probes, conditions, device)
    for_each(groups, measure, device, Counter(total, progress))
    return tuple(
        ListenedMaps(name, condition.kind, condition.snr_db, method, listened(_of(found[row, column, number])))
        for row, name in enumerate(networks)
        for column, condition in enumerate(conditions)
        for number, method in enumerate(LISTENED_MAPS)
    )


def _of(values: NDArray[np.float64]) -> Confidences:
    whole, part, rest, same = values
    return Confidences(whole, part, rest, same > 0)


def _confidences(network: SpeakerNetwork, batch: MixtureBatch) -> NDArray[np.float64]:
    """Return whole, kept, removed and same class of a batch, [batch, methods, 4]."""
    audio = batch.mixture.audio
    with torch.no_grad():
        features, frames = network.front_end(audio, batch.lengths)
        energy = log_energy(network.front_end, audio, batch.lengths)
    attributions = attribute(network, features, frames, True)
    maps = {**attributions.maps, **random_maps(attributions.saliency, batch.indices.tolist()), ENERGY: energy}
    rows = []
    for row, length in enumerate(batch.lengths.tolist()):
        samples, count = audio[row, :length].cpu().numpy(), int(frames[row])
        shown = [_unit(maps[name][row, :, :count].cpu().numpy()) for name in LISTENED_MAPS]
        rows.append(_row(network, samples, shown))
    return np.stack(rows)


def _row(
    network: SpeakerNetwork, samples: NDArray[np.float32], maps: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """Return the values of one utterance, [methods, 4], for maps in [0, 1], each [mel, frames]."""
    centres = np.array(network.front_end.centres_hz())
    parts = [kept(samples, each, centres, FRAME_LENGTH, FRAME_SHIFT) for each in maps]
    sounds = [samples, *parts, *(samples - part for part in parts)]
    audio = torch.from_numpy(np.stack(sounds)).to(next(network.parameters()).device)
    with torch.inference_mode():
        features, frames = network.front_end(audio)
        logits = network.logits(network.encoder(features, frames, masked=False).embedding)
        probabilities = logits.softmax(dim=1).double().cpu().numpy()
    label = int(probabilities[0].argmax())
    count = len(maps)
    of_label = probabilities[:, label]
    same = probabilities[1 : count + 1].argmax(axis=1) == label
    return np.stack(
        [np.full(count, of_label[0]), of_label[1 : count + 1], of_label[count + 1 :], same.astype(np.float64)], axis=1
    )


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a map in [0, 1]: those that are not are energies, whose range is used."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return values
    return ((values - low) / max(high - low, float(np.finfo(np.float32).tiny))).astype(np.float32)
