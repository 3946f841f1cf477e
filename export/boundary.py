"""ReLU-boundary references: valid saliency maps that differ from the eager ones by rounding alone.

Where an activation is within rounding of zero, the gradient of its ReLU is one or zero by chance, and the maps below it
change by far more than rounding: on trained networks by up to 1e-2 of their norm, also between the eager network in
float32 and in float64 (figures in `docs/decisions/0002-relu-boundary-references.md`).
"""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from speakerlens.export.blocks import fold
from speakerlens.training.model.front_end import frame_count
from speakerlens.training.model.network import BasicBlock, Bottleneck, SpeakerNetwork
from speakerlens.training.model.saliency import cosine_layercam_of_features, layercam_of_features

_SEEDS = 12
_JITTER = 2.0**-21  # of a weight's size: four units in its last place


class BoundaryReferences:
    """Maps of an utterance by autograd on either side of the ReLU boundaries that it is near.

    The candidates are maps of the eager network for the features that the graph under test used (features are compared
    separately), with batch normalisation folded or not, and with weights changed in their last bits. A graph with a
    wrong gradient agrees with none of them, so comparing with the nearest candidate does not weaken the tolerance.

    Args:
        network: the reference, in evaluation mode.
    """

    def __init__(self, network: SpeakerNetwork) -> None:
        self._network = network
        self._variant = functools.cache(self._make_variant)

    def maps(
        self, features: NDArray[Any], samples: int, target: int, reference: Tensor | None = None
    ) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield the raw maps of all stages, each [rows, columns]; the most likely candidate first.

        Args:
            features: log-mel of the graph under test, [mel, frames], with or without padding.
            samples: length of the utterance, at 16 kHz.
            target: class to explain, or -1.
            reference: reference embedding, [size], if the maps explain the cosine to it.
        """
        frames = frame_count(torch.tensor([samples]))
        log_mel = torch.from_numpy(features[None, :, : int(frames)].copy())
        for seed in range(_SEEDS):
            for folded in (True, False):
                network = self._variant(seed, folded)
                if reference is None:
                    maps = layercam_of_features(network, log_mel, frames, False, torch.tensor([target])).maps
                else:
                    maps = cosine_layercam_of_features(network, log_mel, frames, reference[None]).maps
                yield tuple(stage_map[0].numpy() for stage_map in maps)

    def _make_variant(self, seed: int, folded: bool) -> SpeakerNetwork:
        network = copy.deepcopy(self._network)
        if folded:
            _fold_normalisation(network)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters() if seed else ():
                parameter.mul_(1.0 + (2.0 * torch.rand(parameter.shape, generator=generator) - 1.0) * _JITTER)
        return network


def _fold_normalisation(network: SpeakerNetwork) -> None:
    encoder = network.encoder
    encoder.conv1, encoder.bn1 = fold(encoder.conv1, encoder.bn1), nn.Identity()  # type: ignore[assignment]
    for block in (module for module in encoder.modules() if isinstance(module, BasicBlock | Bottleneck)):
        block.conv1, block.bn1 = fold(block.conv1, block.bn1), nn.Identity()  # type: ignore[assignment]
        block.conv2, block.bn2 = fold(block.conv2, block.bn2), nn.Identity()  # type: ignore[assignment]
        if isinstance(block, Bottleneck):
            block.conv3, block.bn3 = fold(block.conv3, block.bn3), nn.Identity()  # type: ignore[assignment]
        if len(block.shortcut) > 0:
            block.shortcut = nn.Sequential(fold(*block.shortcut))
