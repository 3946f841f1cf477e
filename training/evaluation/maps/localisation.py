"""Localisation: whether maps of utterances in which target, interferer and target take turns pick the target's."""

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
from speakerlens.training.evaluation.conditions import batches, generator
from speakerlens.training.evaluation.maps.attributions import (
    ENERGY,
    GRAD_CAM_PLUS_PLUS,
    GRADIENT_X_INPUT,
    RANDOM,
    attribute,
    chance,
    log_energy,
)
from speakerlens.training.evaluation.maps.probes import Counter, Probes, Progress
from speakerlens.training.evaluation.maps.statistics import roc_auc
from speakerlens.training.evaluation.measure import FUSED, ranks_of
from speakerlens.training.evaluation.workers import Networks, batch_size, common, for_each
from speakerlens.training.model.front_end import FRAME_LENGTH, FRAME_SHIFT, LogMel
from speakerlens.training.model.network import STAGES, SpeakerNetwork

OTHER_SPEAKER = "fused of another speaker"
"""The control that asks whether a map is about its class: it explains the next speaker in the list of labels."""

MAPS = (*STAGES, FUSED, GRAD_CAM_PLUS_PLUS, GRADIENT_X_INPUT, OTHER_SPEAKER, RANDOM, ENERGY)

TURN_SECONDS = 1.25

_KIND = "speaker"
_FADE = SAMPLE_RATE // 200  # 5 ms, so that a join is not a click
_TALKING_DB = 25.0  # below a talker's loudest frame: what is quieter is a pause


@dataclass(frozen=True)
class Localisation:
    """Where one network's maps of the true speaker lie when he, somebody else and he again talk in turn.

    Attributes:
        network: its name.
        ranks: of the true speaker's score for each utterance, 1 is best; a tie counts against it.
        turn_seconds: length of a turn, mean over the utterances.
        frames: area under the ROC curve of each utterance's map, summed over mel, for frames in which he talks against
            those in which the other talks, by map (`MAPS`): 1 has all of his above all of the other's, 0.5 is chance.
        bins: the same of all bins of these frames for themselves.
    """

    network: str
    ranks: tuple[int, ...]
    turn_seconds: float
    frames: Mapping[str, tuple[float, ...]]
    bins: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Turns:
    """Target, interferer and target in turn, some utterances padded to the longest.

    Attributes:
        indices: which of the probes they are, [batch]; labels: index of each true speaker, [batch].
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
        UserError: the split has nobody else who talks, or a file cannot be read.
    """
    device, front_end = common(networks)
    shape = (len(networks), len(probes.clips))
    ranks, seconds = np.zeros(shape, dtype=np.int64), np.zeros(len(probes.clips))
    areas = np.full((2, len(MAPS), *shape), np.nan)

    def measure(made: Turns) -> None:
        own = made.indices.numpy()
        seconds[own] = made.turns.numpy() / SAMPLE_RATE
        labels, audio, lengths = made.labels.to(device), made.audio.to(device), made.lengths.to(device)
        energy = log_energy(front_end, audio, lengths)
        talks = [who_talks(row, turn) for row, turn in zip(energy, made.turns.tolist(), strict=True)]
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
    """Put the utterances together: the target's beginning, as much of somebody else, the target's end, equally loud.

    A turn takes 1.25 s, or half of the utterance where that is shorter. Who else talks depends on the utterance only.
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
    """Join three turns [N], each faded in and out for 5 ms; the second is made as loud as the others, pauses aside."""
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
    """Root of the mean power of the frames within 25 dB of the loudest, of audio [N]: pauses do not count."""
    frames = audio[: len(audio) // FRAME_SHIFT * FRAME_SHIFT].reshape(-1, FRAME_SHIFT)
    power = np.square(frames.astype(np.float64)).mean(axis=1)
    return float(np.sqrt(power[_talking(power)].mean()))


def who_talks(energy: Tensor, turn: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find the frames in which the target talks, and those in which the other does.

    Args:
        energy: log-mel energy of three turns, [mel, frames], as wide as the batch.
        turn: samples of each.

    Returns:
        bool [frames], as many as the three turns have: within 25 dB of the loudest frame of the same talker.
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
    """Area under the ROC curve of a map, frame by frame and bin by bin.

    Args:
        stage_map: [mel, frames], as wide as the batch.
        target: whether the target talks, [frames].
        other: whether the other does, [frames].

    Returns:
        How often a frame, and a bin, of the target has more than one of the other.
    """
    counted = target | other
    values = stage_map[:, : len(target)].double().cpu().numpy()[:, counted]
    positive = target[counted]
    by_bin = np.broadcast_to(positive, values.shape)
    return roc_auc(values.sum(axis=0), positive), roc_auc(values.ravel(), by_bin.ravel())


def _maps(
    network: SpeakerNetwork, front_end: LogMel, audio: Tensor, lengths: Tensor, labels: Tensor, seeds: list[int]
) -> tuple[dict[str, Tensor], NDArray[np.int64]]:
    """Make the `MAPS` of a batch but `ENERGY`, and rank the true speakers."""
    with torch.no_grad():
        features, frames = front_end(audio, lengths)
    found = attribute(network, features, frames, True, labels)
    other = attribute(network, features, frames, True, (labels + 1) % network.classes)
    maps = {**found.maps, **chance(found.saliency, seeds), OTHER_SPEAKER: other.maps[FUSED]}
    return maps, ranks_of(found.saliency.logits, labels)
