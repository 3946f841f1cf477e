"""Deletion index: do the maps keep off the bins that the interference dominates? With what a map does anyway beside it.

A map of clean speech keeps off those bins too, for they are where the speech is weak. So the clean utterance's map
is measured on the same bins; what the index lies below that is what the network has deleted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from speakerlens.training.evaluation.conditions import CLEAN, Condition, MixtureBatch
from speakerlens.training.evaluation.maps.attributions import ENERGY, log_energy, shown_stages
from speakerlens.training.evaluation.maps.probes import Counter, Probes, Progress, heard
from speakerlens.training.evaluation.measure import MAPS as EVALUATED_MAPS
from speakerlens.training.evaluation.measure import ranks_of
from speakerlens.training.evaluation.workers import Networks, common, for_each
from speakerlens.training.model.front_end import time_mask
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.saliency import Saliency, deletion_index, dominated_bins, layercam

S4_RAW = "s4-raw"
"""S4's map as the network has it: every value fills the bins that its cell covers, where `display` interpolates."""

MAPS = (*EVALUATED_MAPS, S4_RAW, ENERGY)
"""`ENERGY` counts from the lowest bin of the utterance."""


@dataclass(frozen=True)
class DeletionIndices:
    """Deletion index of one network's maps of the true speaker in one condition.

    Attributes:
        network: its name; kind, snr_db: the condition.
        ranks: of the true speaker's score for each utterance, 1 is best; a tie counts against it.
        areas: share of the bins that the interference dominates, for each utterance.
        indices: of each utterance, by map (`MAPS`): 1 is blind to the interference, lower deletes more; NaN where the
            map is empty or nothing is dominated.
        clean_indices: the same bins, but the map of the utterance without interference.
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
    """Measure the deletion index of each network's maps under each of some conditions with interference."""
    device, front_end = common(networks)
    shape = (len(networks), len(conditions), len(probes.clips))
    ranks, areas = np.zeros(shape, dtype=np.int64), np.full(shape[1:], np.nan)
    indices = np.full((2, len(MAPS), *shape), np.nan)

    def measure(group: Sequence[MixtureBatch]) -> None:
        made = [batch.to(device) for batch in group]
        own = made[0].indices.cpu().numpy()
        dominated = [dominated_bins(front_end, b.mixture.speech, b.mixture.interference) for b in made[1:]]
        for row, network in enumerate(networks.values()):
            clean, _ = _maps(network, made[0])
            for column, (batch, where) in enumerate(zip(made[1:], dominated, strict=True)):
                maps, saliency = _maps(network, batch)
                ranks[row, column, own] = ranks_of(saliency.logits, batch.labels)
                areas[column, own] = _share(where, saliency.frames)
                for number, name in enumerate(MAPS):
                    for which, of in enumerate((maps, clean)):
                        index = deletion_index(of[name], where, saliency.frames)
                        indices[which, number, row, column, own] = index.cpu().numpy()

    total, groups = heard(probes, (CLEAN, *conditions), device)
    for_each(groups, measure, device, Counter(total, progress))
    return tuple(
        DeletionIndices(
            name,
            condition.kind,
            condition.snr_db,
            tuple(ranks[row, column].tolist()),
            tuple(areas[column].tolist()),
            *({m: tuple(indices[which, k, row, column].tolist()) for k, m in enumerate(MAPS)} for which in (0, 1)),
        )
        for row, name in enumerate(networks)
        for column, condition in enumerate(conditions)
    )


def _maps(network: SpeakerNetwork, batch: MixtureBatch) -> tuple[dict[str, Tensor], Saliency]:
    saliency = layercam(network, batch.mixture.audio, batch.lengths, batch.labels)
    mel_bins, width = saliency.features.shape[1:]
    maps = shown_stages(saliency)
    maps[S4_RAW] = spread(saliency.maps[-1], saliency.columns[-1], saliency.frames, mel_bins, width)
    energy = log_energy(network.front_end, batch.mixture.audio, batch.lengths)
    beyond = time_mask(saliency.frames, width)[:, None] == 0
    lowest = energy.masked_fill(beyond, math.inf).amin(dim=(1, 2), keepdim=True)
    maps[ENERGY] = (energy - lowest).masked_fill(beyond, 0.0)
    return maps, saliency


def spread(stage_map: Tensor, columns: Tensor, frames: Tensor, mel_bins: int, width: int) -> Tensor:
    """Give every bin the value of the cell that covers it; as `training.model.saliency.display`."""
    result = stage_map.new_zeros(stage_map.shape[0], mel_bins, width)
    for row, (count, frame_count) in enumerate(zip(columns.tolist(), frames.tolist(), strict=True)):
        valid = stage_map[row : row + 1, None, :, :count]
        result[row, :, :frame_count] = F.interpolate(valid, (mel_bins, frame_count), mode="nearest-exact")[0, 0]
    return result


def _share(dominated: Tensor, frames: Tensor) -> NDArray[np.float64]:
    valid = time_mask(frames, dominated.shape[2])[:, None].expand_as(dominated)
    share: NDArray[np.float64] = ((dominated * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))).double().cpu().numpy()
    return share
