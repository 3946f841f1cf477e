"""Localisation: how well maps separate the target's turns from an interferer's in one utterance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speakerlens.training.data.audio import SAMPLE_RATE, read_sound
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.accuracy import ranks_of
from speakerlens.training.evaluation.conditions import batches, generator
from speakerlens.training.evaluation.maps.attributions import (
    ENERGY,
    FUSED,
    GRAD_CAM_PLUS_PLUS,
    GRADIENT_X_INPUT,
    RANDOM,
    attribute,
    log_energy,
    random_maps,
)
from speakerlens.training.evaluation.maps.probes import Counter, Probes, Progress
from speakerlens.training.evaluation.maps.statistics import roc_auc
from speakerlens.training.evaluation.workers import Networks, batch_size, device_and_front_end, for_each
from speakerlens.training.model.front_end import FRAME_LENGTH, FRAME_SHIFT, LogMel
from speakerlens.training.model.network import STAGES, SpeakerNetwork

OTHER_SPEAKER = "fused of another speaker"
"""A control for class specificity: the map of the next speaker in the list of labels."""

MAPS = (*STAGES, FUSED, GRAD_CAM_PLUS_PLUS, GRADIENT_X_INPUT, OTHER_SPEAKER, RANDOM, ENERGY)

TURN_SECONDS = 1.25

_KIND = "speaker"
_FADE = SAMPLE_RATE // 200  # 5 ms, to avoid clicks
_TALKING_DB = 25.0  # below a talker's loudest frame; quieter frames are pauses


@dataclass(frozen=True)
class Localisation:
    """Localisation of one network's maps of the true speaker where target, interferer and target talk in turn.

    Attributes:
        network: its name.
        ranks: of the true speaker's score for each utterance, 1 is best; a tie counts against it.
        turn_seconds: length of a turn, mean over the utterances.
        frames: by map (`MAPS`), for each utterance the area under the ROC curve of the map summed over mel, target's
            frames against interferer's: 1 is perfect separation, 0.5 is chance.
        bins: the same of the single bins of these frames.
    """

    network: str
    ranks: tuple[int, ...]
    turn_seconds: float
    frames: Mapping[str, tuple[float, ...]]
    bins: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Turns:
    """A padded batch in which target, interferer and target talk in turn.

    Attributes:
        indices: positions among the probes, [batch]; labels: index of each true speaker, [batch].
        audio: 16 kHz, [batch, samples]; lengths: valid samples, [batch].
        turns: samples of a turn, [batch].
    """

    indices: Tensor
    labels: Tensor
    audio: Tensor
    lengths: Tensor
    turns: Tensor


def localisation(networks: Networks, probes: Probes, progress: Progress) -> tuple[Localisation, ...]:
    """Measure how well each network's maps separate the target's turns from the interferer's.

    Raises:
        UserError: the split has no other talker, or a file cannot be read.
    """
    device, front_end = device_and_front_end(networks)
    shape = (len(networks), len(probes.clips))
    ranks, seconds = np.zeros(shape, dtype=np.int64), np.zeros(len(probes.clips))
    areas = np.full((2, len(MAPS), *shape), np.nan)

    def measure(made: Turns) -> None:
        own = made.indices.numpy()
        seconds[own] = made.turns.numpy() / SAMPLE_RATE
        labels, audio, lengths = made.labels.to(device), made.audio.to(device), made.lengths.to(device)
        energy = log_energy(front_end, audio, lengths)
        talks = [talking_frames(row, turn) for row, turn in zip(energy, made.turns.tolist(), strict=True)]
        for row, network in enumerate(networks.values()):
            maps, ranks[row, own] = _maps(network, front_end, audio, lengths, labels, own.tolist())
            for number, name in enumerate(MAPS):
                for at, found, (target, other) in zip(own, {**maps, ENERGY: energy}[name], talks, strict=True):
                    areas[:, number, row, at] = areas_of(found, target, other)

    size = batch_size(device)
    for_each(in_turn(probes, size), measure, device, Counter(len(batches(probes.clips, size)), progress))
    return tuple(
        Localisation(
            name,
            tuple(ranks[row].tolist()),
            float(seconds.mean()),
            *({m: tuple(areas[which, k, row].tolist()) for k, m in enumerate(MAPS)} for which in (0, 1)),
        )
        for row, name in enumerate(networks)
    )


def in_turn(probes: Probes, size: int) -> Iterator[Turns]:
    """Yield batches: the target's beginning, as much of an interferer, the target's end, equally loud.

    A turn lasts 1.25 s, or half of the utterance where that is shorter. The interferer depends on the utterance only.
    """
    source = InterferenceSource(probes.corpus, probes.split)
    if _KIND not in source.kinds:
        raise UserError(f"{probes.corpus.root}: its {probes.split} split has no other talker to take turns with")
    label_of = {speaker: label for label, speaker in enumerate(probes.speakers)}
    for indices in batches(probes.clips, size):
        rows, turns = [], []
        for clip in (probes.clips[index] for index in indices):
            speech = read_sound(clip.path, clip.start, clip.duration)
            turn = min(round(TURN_SECONDS * SAMPLE_RATE), len(speech) // 2)
            other = source.draw(_KIND, turn, generator(probes.corpus, "turns", clip), clip.speaker)
            rows.append(torch.from_numpy(join(speech[:turn], other, speech[-turn:])))
            turns.append(turn)
        labels = torch.tensor([label_of[str(probes.clips[index].speaker)] for index in indices])
        lengths = torch.tensor([len(row) for row in rows])
        audio = pad_sequence(rows, batch_first=True)
        yield Turns(torch.tensor(indices), labels, audio, lengths, torch.tensor(turns))


def join(first: NDArray[np.float32], other: NDArray[np.float32], last: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return three turns, each float32 [N], joined to [3 N].

    Each is faded in and out for 5 ms; the second gets the level of the others, without pauses.
    """
    wanted = talking_level(np.concatenate([first, last]))
    other = other * (wanted / max(talking_level(other), float(np.finfo(np.float32).tiny)))
    ramp = np.ones(len(first), dtype=np.float32)
    edge = np.linspace(0, 1, min(_FADE, len(first) // 2), endpoint=False, dtype=np.float32)
    ramp[: len(edge)] = edge
    ramp[len(ramp) - len(edge) :] = edge[::-1]
    joined = np.concatenate([turn * ramp for turn in (first, other, last)]).astype(np.float32)
    peak = float(np.abs(joined).max())
    return joined / peak if peak > 1 else joined


def talking_level(audio: NDArray[np.float32]) -> float:
    """Return the root mean square of audio [N] over the frames within 25 dB of the loudest: pauses do not count."""
    frames = audio[: len(audio) // FRAME_SHIFT * FRAME_SHIFT].reshape(-1, FRAME_SHIFT)
    power = np.square(frames.astype(np.float64)).mean(axis=1)
    return float(np.sqrt(power[_talking(power)].mean()))


def talking_frames(energy: Tensor, turn: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the frames in which the target talks, and those in which the interferer does.

    Args:
        energy: log-mel energy of three turns, [mel, frames], as wide as the batch.
        turn: samples of each.

    Returns:
        Two masks, bool [frames] of the three turns: frames within 25 dB of the loudest of the same talker.
    """
    frames = (3 * turn - FRAME_LENGTH) // FRAME_SHIFT + 1
    power = energy[:, :frames].double().exp().sum(dim=0).cpu().numpy()
    centres = np.arange(frames) * FRAME_SHIFT + FRAME_LENGTH / 2
    target = (centres < turn) | (centres >= 2 * turn)
    return target & _talking(np.where(target, power, 0.0)), ~target & _talking(np.where(target, 0.0, power))


def _talking(power: NDArray[np.float64]) -> NDArray[np.bool_]:
    loud: NDArray[np.bool_] = power >= power.max() * 10 ** (-_TALKING_DB / 10)
    return loud


def areas_of(stage_map: Tensor, target: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the area under the ROC curve of a map, by frames and by bins; 0.5 is chance.

    Args:
        stage_map: [mel, frames], as wide as the batch.
        target: whether the target talks, bool [frames].
        other: whether the interferer does, bool [frames].
    """
    counted = target | other
    values = stage_map[:, : len(target)].double().cpu().numpy()[:, counted]
    positive = target[counted]
    by_bin = np.broadcast_to(positive, values.shape)
    return roc_auc(values.sum(axis=0), positive), roc_auc(values.ravel(), by_bin.ravel())


def _maps(
    network: SpeakerNetwork, front_end: LogMel, audio: Tensor, lengths: Tensor, labels: Tensor, seeds: list[int]
) -> tuple[dict[str, Tensor], NDArray[np.int64]]:
    """Return the `MAPS` of a batch except `ENERGY`, each [batch, mel, frames], and the true speakers' ranks [batch]."""
    with torch.no_grad():
        features, frames = front_end(audio, lengths)
    found = attribute(network, features, frames, True, labels)
    other = attribute(network, features, frames, True, (labels + 1) % network.classes)
    maps = {**found.maps, **random_maps(found.saliency, seeds), OTHER_SPEAKER: other.maps[FUSED]}
    return maps, ranks_of(found.saliency.logits, labels)
