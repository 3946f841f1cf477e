"""Deletion index: how much saliency lies on the bins that the interference dominates.

A map of clean speech has little saliency on those bins too, since the speech is weak there. So the map of the clean
utterance is measured on the same bins as a control: the index minus the control is the reaction to the interference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from speakerlens.training.evaluation.accuracy import ranks_of
from speakerlens.training.evaluation.conditions import CLEAN, Condition, MixtureBatch
from speakerlens.training.evaluation.maps.attributions import ENERGY, STAGES_AND_FUSED, log_energy, shown_stages
from speakerlens.training.evaluation.maps.probes import Counter, Probes, Progress, mixture_groups
from speakerlens.training.evaluation.workers import Networks, device_and_front_end, for_each
from speakerlens.training.model.front_end import time_mask
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.saliency import Saliency, deletion_index, dominated_bins, layercam

DELETION_SNRS_DB = (5.0, 0.0)

S4_RAW = "s4-raw"
"""S4's map without interpolation: every value fills the bins that its cell covers."""

Target = Literal["true", "predicted"]
"""Whose score a map explains: the true speaker's, or that of the speaker whom the network names, as the server does."""

TARGETS: tuple[Target, ...] = get_args(Target)

MAPS = (*STAGES_AND_FUSED, S4_RAW, ENERGY)
"""`ENERGY` is measured from the lowest bin of the utterance."""


@dataclass(frozen=True)
class DeletionIndices:
    """Deletion index of one network's maps of one target in one condition.

    Attributes:
        network: its name; kind, snr_db: the condition.
        ranks: of the true speaker's score for each utterance, 1 is best; a tie counts against it.
        areas: share of the bins that the interference dominates, for each utterance.
        indices: for each utterance, by map (`MAPS`): 1 ignores the interference, lower deletes more; NaN where the map
            is empty or nothing is dominated.
        clean_indices: the control: the same bins, but the map of the utterance without interference.
    """

    network: str
    kind: str
    snr_db: float | None
    ranks: tuple[int, ...]
    areas: tuple[float, ...]
    indices: Mapping[str, tuple[float, ...]]
    clean_indices: Mapping[str, tuple[float, ...]]


def deletion_indices(
    networks: Networks, probes: Probes, conditions: Sequence[Condition], progress: Progress
) -> tuple[DeletionIndices, ...]:
    """Measure the deletion index of each network's maps of the true speaker under each condition with interference."""
    return deletion_by_target(networks, probes, conditions, ("true",), progress)["true"]


def deletion_by_target(
    networks: Networks, probes: Probes, conditions: Sequence[Condition], targets: Sequence[Target], progress: Progress
) -> dict[Target, tuple[DeletionIndices, ...]]:
    """Measure the deletion index of each network's maps of each target under each condition with interference."""
    device, front_end = device_and_front_end(networks)
    shape = (len(networks), len(conditions), len(probes.clips))
    ranks, areas = np.zeros(shape, dtype=np.int64), np.full(shape[1:], np.nan)
    indices = {target: np.full((2, len(MAPS), *shape), np.nan) for target in targets}

    def measure(group: Sequence[MixtureBatch]) -> None:
        made = [batch.to(device) for batch in group]
        own = made[0].indices.cpu().numpy()
        dominated = [dominated_bins(front_end, b.mixture.speech, b.mixture.interference) for b in made[1:]]
        for row, network in enumerate(networks.values()):
            clean, _ = _maps(network, made[0], targets)
            for column, (batch, where) in enumerate(zip(made[1:], dominated, strict=True)):
                maps, saliency = _maps(network, batch, targets)
                ranks[row, column, own] = ranks_of(saliency.logits, batch.labels)
                areas[column, own] = _share(where, saliency.frames)
                for target in targets:
                    for number, name in enumerate(MAPS):
                        for which, of in enumerate((maps[target], clean[target])):
                            index = deletion_index(of[name], where, saliency.frames)
                            indices[target][which, number, row, column, own] = index.cpu().numpy()

    total, groups = mixture_groups(probes, (CLEAN, *conditions), device)
    for_each(groups, measure, device, Counter(total, progress))

    def of_map(target: Target, which: int, row: int, column: int) -> dict[str, tuple[float, ...]]:
        return {m: tuple(indices[target][which, k, row, column].tolist()) for k, m in enumerate(MAPS)}

    return {
        target: tuple(
            DeletionIndices(
                name,
                condition.kind,
                condition.snr_db,
                tuple(ranks[row, column].tolist()),
                tuple(areas[column].tolist()),
                of_map(target, 0, row, column),
                of_map(target, 1, row, column),
            )
            for row, name in enumerate(networks)
            for column, condition in enumerate(conditions)
        )
        for target in targets
    }


def _maps(
    network: SpeakerNetwork, batch: MixtureBatch, targets: Sequence[Target]
) -> tuple[dict[Target, dict[str, Tensor]], Saliency]:
    """Return by target the `MAPS` of a batch, each [batch, mel, frames], and the raw saliency of the true speakers."""
    saliency = layercam(network, batch.mixture.audio, batch.lengths, batch.labels)
    maps = _shown(network, batch.mixture.audio, batch.lengths, saliency)
    by_target: dict[Target, dict[str, Tensor]] = {"true": maps}
    if "predicted" in targets:
        by_target["predicted"] = maps
        wrong = saliency.logits.argmax(dim=1) != batch.labels
        if wrong.any():  # where the network is right, the two are the same
            audio, lengths = batch.mixture.audio[wrong], batch.lengths[wrong]
            others = _shown(network, audio, lengths, layercam(network, audio, lengths))
            at = wrong.nonzero().squeeze(1)
            by_target["predicted"] = {name: values.index_copy(0, at, others[name]) for name, values in maps.items()}
    return by_target, saliency


def _shown(network: SpeakerNetwork, audio: Tensor, lengths: Tensor, saliency: Saliency) -> dict[str, Tensor]:
    """Return the `MAPS` of audio [batch, samples], each [batch, mel, frames]."""
    mel_bins, width = saliency.features.shape[1:]
    maps = shown_stages(saliency)
    maps[S4_RAW] = spread(saliency.maps[-1], saliency.columns[-1], saliency.frames, mel_bins, width)
    energy = log_energy(network.front_end, audio, lengths)
    beyond = time_mask(saliency.frames, width)[:, None] == 0
    lowest = energy.masked_fill(beyond, math.inf).amin(dim=(1, 2), keepdim=True)
    maps[ENERGY] = (energy - lowest).masked_fill(beyond, 0.0)
    return maps


def spread(stage_map: Tensor, columns: Tensor, frames: Tensor, mel_bins: int, width: int) -> Tensor:
    """Resize a raw map to its features by nearest neighbour, so that every bin has the value of its cell.

    Args:
        stage_map: [batch, rows, columns].
        columns: valid ones, [batch].
        frames: valid ones, [batch].
        mel_bins: of the features.
        width: frames of the features, padding included.

    Returns:
        [batch, mel, frames], zero beyond the valid frames.
    """
    result = stage_map.new_zeros(stage_map.shape[0], mel_bins, width)
    for row, (count, frame_count) in enumerate(zip(columns.tolist(), frames.tolist(), strict=True)):
        valid = stage_map[row : row + 1, None, :, :count]
        result[row, :, :frame_count] = F.interpolate(valid, (mel_bins, frame_count), mode="nearest-exact")[0, 0]
    return result


def _share(dominated: Tensor, frames: Tensor) -> NDArray[np.float64]:
    """Return the share of the valid bins that the interference dominates, [batch]."""
    valid = time_mask(frames, dominated.shape[2])[:, None].expand_as(dominated)
    share: NDArray[np.float64] = ((dominated * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))).double().cpu().numpy()
    return share
