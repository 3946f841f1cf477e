"""Recognise a ResNet by its weights' names and shapes, and its classes; say what other networks are.

The structure is inferred from the weights; the configuration adds features, pooling, and the classifier's kind and
scale. The two must agree.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from speakerlens.training.config import NetworkConfig
from speakerlens.training.errors import UserError
from speakerlens.training.imported.kinds import FITS
from speakerlens.training.imported.settings import Settings
from speakerlens.training.imported.weights import Weights
from speakerlens.training.model.network import ResNet

_CLASSES = "projection.weight"
_SPEEDS = 3
"""With speed perturbation every speaker has a class at each of the speeds 1.0, 0.9 and 1.1; those at 1.0 come first."""

_COSINE_CLASSIFIERS = ("arc_margin", "add_margin")

_OTHERS = (
    (
        r"wav2vec2|wavlm|hubert|encoder\.layers?\.\d+\.(self_)?attention",
        "a transformer on waveforms (wav2vec 2.0, WavLM)",
    ),
    (
        r"sincnet\..*\blstm|lstm\.weight_ih",
        "pyannote's segmentation network (PyanNet), which finds speech, not speakers",
    ),
    (r"head\.(conv1|layer1).*xvector|xvector\.(tdnn|block\d)", "a CAM++ network"),
    (r"sincnet\.|tdnns?\.\d|frame_?\d\.|xvector", "an x-vector network (TDNN)"),
    (r"se_res2block|res2net|blocks\.\d+\.tdnn1|asp_bn|mfa\.", "an ECAPA-TDNN"),
    (r"\bfront\.|simam", "a SimAM-ResNet"),
    (r"layer\d\.\d+\.(convs|bns)\.|fuse_mode|layer\d_downsample", "an ERes2Net"),
    (r"backbone\.stage|to1d|fin_wght1d", "a ReDimNet"),
    (r"encoder\.encoder\.\d+\.mconv|decoder\._pooling", "a TitaNet"),
    (r"gemini|dfresnet", "a Gemini DF-ResNet"),
    (r"lstm|gru", "a recurrent network, such as a d-vector"),
)
"""Patterns of weights' names, and the networks that have such weights; the first that fits is named."""


def network_config(encoder: Mapping[str, Tensor], settings: Settings, path: Path) -> NetworkConfig:
    """Return the network that weights belong to, checked against the settings.

    Args:
        encoder: from `read_checkpoint`.
        settings: from `read_settings`.
        path: of the checkpoint, for messages.

    Raises:
        UserError: the weights are not a ResNet's with one embedding layer, or the settings are of another network.
    """
    if "seg_2.weight" in encoder:
        raise UserError(
            f"{path}: has two embedding layers (seg_1 and seg_2); only networks with one (two_emb_layer: false) can be "
            "imported"
        )
    stem, segment = encoder.get("conv1.weight"), encoder.get("seg_1.weight")
    blocks = tuple(_count_blocks(encoder, stage) for stage in (1, 2, 3, 4))
    if stem is None or segment is None or stem.ndim != 4 or segment.ndim != 2 or not all(blocks):
        raise UserError(
            f"{path}: not a WeSpeaker ResNet; it lacks conv1.weight, seg_1.weight, or blocks in one of layer1 to layer4"
            f"{_instead(encoder)}. What fits is {FITS}"
        )
    kind: Literal["basic", "bottleneck"] = "bottleneck" if "layer1.0.conv3.weight" in encoder else "basic"
    depth = 2 + sum(blocks) * (3 if kind == "bottleneck" else 2)
    if depth != settings.depth:
        raise UserError(
            f"{path}: has the blocks of a ResNet{depth}, {'-'.join(map(str, blocks))} {kind}, but the configuration is "
            f"of a {settings.model}"
        )
    embedding = segment.shape[0]
    if settings.embedding not in (None, embedding):
        raise UserError(
            f"{path}: its embedding has {embedding} values, but the configuration's embed_dim is {settings.embedding}"
        )
    first, second, third, fourth = blocks
    config = NetworkConfig((first, second, third, fourth), stem.shape[0], embedding, settings.mel_bins, kind)
    _check_shapes(encoder, config, path)
    return config


def read_speakers(path: Path) -> tuple[str, ...]:
    """Read a list of speakers in the order of the classes: one name per line, or WeSpeaker's "name number".

    Raises:
        UserError: it cannot be read, has fewer than two speakers or a duplicate, or its numbers are not 0, 1, 2, ….
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable list of speakers: {error}") from error
    numbered = [re.fullmatch(r"(.+?)\s+(\d{1,9})", line) for line in lines]
    names = lines
    if lines and all(numbered):
        order = {int(match[2]): match[1] for match in numbered if match}
        if sorted(order) != list(range(len(lines))):
            raise UserError(
                f"{path}: its numbers must be 0 to {len(lines) - 1}, each once: they are the classes of the checkpoint"
            )
        names = [order[number] for number in range(len(lines))]
    if len(set(names)) < len(names):
        twice = next(name for position, name in enumerate(names) if name in names[:position])
        raise UserError(f"{path}: names {twice} twice; every class needs its own name")
    if len(names) < 2:
        raise UserError(f"{path}: names {len(names)} speakers; at least two are needed")
    return tuple(names)


def classes_of(weights: Weights, speakers: Sequence[str], settings: Settings, embedding: int, path: Path) -> Tensor:
    """Return the classifier's weights of the speakers at speed 1.0, float32 [speakers, embedding].

    Args:
        weights: from `read_checkpoint`, with a classifier.
        speakers: of the classes, in their order.
        settings: from `read_settings`.
        embedding: size of the embedding.
        path: of the checkpoint, for messages.

    Raises:
        UserError: its kind is not supported, or its number of classes does not fit.
    """
    instead = "use --enrol to fit a classifier on the corpus's speakers"
    classes = weights.classifier.get(_CLASSES)
    if settings.classifier not in _COSINE_CLASSIFIERS or classes is None:
        kinds = " and ".join(_COSINE_CLASSIFIERS)
        raise UserError(
            f"{path}: its classifier is of type {settings.classifier or 'unknown'}; only {kinds} can be imported; "
            f"{instead}"
        )
    count = len(speakers)
    if classes.ndim != 2 or classes.shape[1] != embedding:
        raise UserError(f"{path}: its classifier is not of embeddings of {embedding} values; {instead}")
    if classes.shape[0] not in (count, _SPEEDS * count):
        raise UserError(
            f"{path}: its classifier has {classes.shape[0]} classes, but {count} speakers are listed; there must be as "
            f"many, or a third as many with speed perturbation; {instead}"
        )
    return classes[:count].float()


def _instead(encoder: Mapping[str, Tensor]) -> str:
    """Return a phrase that says of which other network weights are, by their names; empty where it is not known."""
    names = "\n".join(encoder).lower()
    found = next((network for pattern, network in _OTHERS if re.search(pattern, names, re.DOTALL)), None)
    return "" if found is None else f": by its names it is {found}"


def _count_blocks(encoder: Mapping[str, Tensor], stage: int) -> int:
    """Return the number of blocks of a stage up to the first gap; `_check_shapes` reports blocks after it."""
    count = 0
    while f"layer{stage}.{count}.conv1.weight" in encoder:
        count += 1
    return count


def _check_shapes(encoder: Mapping[str, Tensor], config: NetworkConfig, path: Path) -> None:
    with torch.device("meta"):  # names and shapes without memory
        expected = ResNet(config).state_dict()
    for problem, names in (
        ("lacks", expected.keys() - encoder.keys()),
        ("has, beyond a ResNet with statistics pooling,", encoder.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path}: {problem} {min(names)}{more}")
    for name, tensor in expected.items():
        if tensor.shape != encoder[name].shape:
            raise UserError(
                f"{path}: {name} has the shape {_shape(encoder[name])}; with {config.mel_bins} mel bins (feat_dim) and "
                f"{config.width} channels it must have {_shape(tensor)}"
            )


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "of a single number"
