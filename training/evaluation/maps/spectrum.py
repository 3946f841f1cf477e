"""The grid that strided convolutions leave in maps, measured in their two-dimensional power spectrum.

A pattern that alternates from row to row or from column to column has the Nyquist frequency in that direction: the grid
of a convolution of stride 2 appears at the three corners (half a cycle per row, per column, or both).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from threading import Lock
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.evaluation.conditions import CLEAN, MixtureBatch
from speakerlens.training.evaluation.maps.probes import Counter, Probes, Progress, mixture_groups
from speakerlens.training.evaluation.workers import Networks, device_and_front_end, for_each
from speakerlens.training.model.front_end import frame_count
from speakerlens.training.model.network import STAGES, SpeakerNetwork, Tap
from speakerlens.training.model.saliency import layercam_map, score_target

TAPS: tuple[Tap, ...] = get_args(Tap)

_COLUMNS = 64  # of a stretch, at most
_CORNER = 1 / 16  # cycles per row or column: distance up to which a frequency belongs to a corner
_BESIDE = 3 / 16  # distance up to which a frequency belongs to the neighbourhood that a corner is compared with


@dataclass(frozen=True)
class MapSpectrum:
    """Mean power spectrum of one network's raw LayerCAM maps of the true speakers at one tap, on clean utterances.

    Attributes:
        network: its name; stage: "s1" to "s4"; tap: where in the stage; used: whether maps are taken there.
        power: mean over stretches of all utterances, each divided by its total; frequency along mel from minus half to
            just under half a cycle per row (rows), along time from 0 to half a cycle per column (columns). Zero
            frequency is at [rows / 2, 0].
        grid_db: power at the corners over that beside them, in decibels (`grid_decibels`).
        spread: height of the grid: spread of the means of the four positions of a 2x2 cell over their mean, median over
            the utterances; 0 is no grid. Some of it is structure of the map itself: S4, which feeds no strided
            convolution, shows how much.
    """

    network: str
    stage: str
    tap: Tap
    used: bool
    power: tuple[tuple[float, ...], ...]
    grid_db: float
    spread: float


@dataclass
class _Sums:
    """Sums for one network at one tap: power over `stretches`, and the spread of each utterance."""

    power: NDArray[np.float64] | float = 0.0
    stretches: int = 0
    spreads: list[float] = field(default_factory=list)


def map_spectra(networks: Networks, probes: Probes, progress: Progress) -> tuple[MapSpectrum, ...]:
    """Measure the spectra of each network's maps at both taps of each stage.

    The input of the last block is left out for stages of one block: it is the output of the stage before.
    """
    device, _ = device_and_front_end(networks)
    width = [min(_COLUMNS, columns // 2 * 2) for columns in _shortest(probes)]
    sums = {(name, stage, tap): _Sums() for name, network in networks.items() for stage, tap in _places(network)}
    lock = Lock()

    def measure(group: Sequence[MixtureBatch]) -> None:
        batch = group[0].to(device)
        for name, network in networks.items():
            for (stage, tap), maps in _maps(network, batch).items():
                for stage_map in maps:
                    power, count = stretches_power(stage_map, width[stage])
                    spread = cell_spread(stage_map)
                    with lock:
                        of_tap = sums[name, stage, tap]
                        of_tap.power += power
                        of_tap.stretches += count
                        of_tap.spreads.append(spread)

    total, groups = mixture_groups(probes, [CLEAN], device)
    for_each(groups, measure, device, Counter(total, progress))
    return tuple(_result(*place, networks[place[0]], found) for place, found in sums.items())


def stretches_power(stage_map: NDArray[np.float64], width: int) -> tuple[NDArray[np.float64], int]:
    """Sum the normalised power spectra of a map's stretches, [rows, columns] -> [even rows, width / 2 + 1].

    No window is needed: a pattern of period two fits a stretch of even size, so it stays in the corners.

    Returns:
        The sum, laid out as `MapSpectrum.power`, and the number of stretches; constant ones are left out.
    """
    rows = len(stage_map) // 2 * 2
    total, count = np.zeros((rows, width // 2 + 1)), 0
    for first in range(0, stage_map.shape[1] - width + 1, width):
        stretch = stage_map[:rows, first : first + width]
        power = np.square(np.abs(np.fft.rfft2(stretch - stretch.mean())))
        if power.sum() > 0:
            total += np.fft.fftshift(power, axes=0) / power.sum()
            count += 1
    return total, count


def grid_decibels(power: NDArray[np.float64]) -> float:
    """Return the power at the three corners over that beside them, in decibels; `power` as in `MapSpectrum`.

    A corner extends a sixteenth of a cycle to every side. Beside it are the next two sixteenths along the axis that
    leads to it from zero frequency, where a map without a grid has more power than in the corner: below 0 is no grid.
    NaN where there is no power, or the map is too small.
    """
    rows, columns = power.shape
    along_mel = np.abs(np.arange(rows) / rows - 0.5)[:, None]  # 0.5 is half a cycle, the Nyquist frequency
    along_time = (np.arange(columns) / (2 * (columns - 1)))[None, :]
    corner, beside = 0.0, 0.0
    for mel, time in ((0.5, 0.0), (0.0, 0.5), (0.5, 0.5)):
        off_mel, off_time = np.abs(along_mel - mel), np.abs(along_time - time)
        on_mel, on_time = off_mel <= _CORNER, off_time <= _CORNER
        arms = np.zeros(power.shape, dtype=bool)
        if mel:
            arms |= on_time & (off_mel > _CORNER) & (off_mel <= _BESIDE)
        if time:
            arms |= on_mel & (off_time > _CORNER) & (off_time <= _BESIDE)
        corner += power[on_mel & on_time].mean()
        beside += power[arms].mean() if arms.any() else math.nan
    return 10 * math.log10(corner / beside) if corner > 0 and beside > 0 else math.nan


def cell_spread(stage_map: NDArray[np.float64]) -> float:
    """Return the spread of the means of the four positions of a 2x2 cell over their mean; NaN for an empty map.

    `stage_map` is [rows, columns].
    """
    rows, columns = stage_map.shape[0] // 2, stage_map.shape[1] // 2
    cells = stage_map[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean(axis=(0, 2))
    return float((cells.max() - cells.min()) / cells.mean()) if cells.mean() > 0 else math.nan


def _places(network: SpeakerNetwork) -> list[tuple[int, Tap]]:
    """Return the stages (0 is S1) and taps of a network."""
    blocks = [len(layer) for layer in network.encoder.layers]
    return [(stage, tap) for stage in range(len(STAGES)) for tap in TAPS if tap == TAPS[0] or blocks[stage] > 1]


def _maps(network: SpeakerNetwork, batch: MixtureBatch) -> dict[tuple[int, Tap], list[NDArray[np.float64]]]:
    """Return the valid part of the raw map of each utterance of a batch at each tap, each [rows, columns]."""
    places = _places(network)
    with torch.no_grad():
        features, frames = network.front_end(batch.mixture.audio, batch.lengths)
    with torch.enable_grad():
        scored = score_target(network, features.requires_grad_(), frames, True, batch.labels)
        found = scored.activations
        tensors = [(found.stages if tap == TAPS[0] else found.block_inputs)[stage] for stage, tap in places]
        gradients = torch.autograd.grad(scored.score, tensors)
    return {
        (stage, tap): _valid(layercam_map(gradient, tensor.detach()), found.stage_frames[stage])
        for (stage, tap), gradient, tensor in zip(places, gradients, tensors, strict=True)
    }


def _valid(maps: Tensor, columns: Tensor) -> list[NDArray[np.float64]]:
    """Return the valid columns of each of the maps [batch, rows, columns]."""
    numbers = maps.double().cpu().numpy()
    return [one[:, :count] for one, count in zip(numbers, columns.tolist(), strict=True)]


def _shortest(probes: Probes) -> list[int]:
    """Return the columns of the shortest utterance at each stage."""
    samples = int(min(clip.duration for clip in probes.clips) * SAMPLE_RATE)
    columns = [int(frame_count(torch.tensor(samples)))]
    while len(columns) < len(STAGES):
        columns.append((columns[-1] + 1) // 2)
    return columns


def _result(name: str, stage: int, tap: Tap, network: SpeakerNetwork, found: _Sums) -> MapSpectrum:
    power = np.asarray(found.power) / max(found.stretches, 1)
    spreads = [spread for spread in found.spreads if math.isfinite(spread)]
    return MapSpectrum(
        network=name,
        stage=STAGES[stage],
        tap=tap,
        used=network.encoder.taps[stage] == tap,
        power=tuple(tuple(float(f"{value:.4g}") for value in row) for row in power),
        grid_db=grid_decibels(power),
        spread=median(spreads) if spreads else math.nan,
    )
