"""Read and check WeSpeaker's files: a ResNet's weights and its configuration.

The structure is inferred from the weights; the configuration adds features, pooling, and the classifier's kind and
scale. The two must agree. Nothing in either file is executed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import torch
import yaml
from torch import Tensor

from speakerlens.training.config import NetworkConfig
from speakerlens.training.errors import UserError
from speakerlens.training.model.network import ResNet

_CLASSES = "projection.weight"
_SPEEDS = 3
"""With speed perturbation every speaker has a class at each of the speeds 1.0, 0.9 and 1.1; those at 1.0 come first."""

_COSINE_CLASSIFIERS = ("arc_margin", "add_margin")
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_PREFIXES = ("module.", "model.")
_FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class Settings:
    """The settings of a WeSpeaker config.yaml that inference needs.

    Attributes:
        model: such as "ResNet34".
        depth: the number in it.
        mel_bins: rows of the log-mel features.
        embedding: size of the embedding.
        classifier: kind of the projection ("arc_margin", …), or None.
        scale: factor on its cosines.
        crop_seconds: length of the training crops.
    """

    model: str
    depth: int
    mel_bins: int
    embedding: int
    classifier: str | None
    scale: float
    crop_seconds: float


class Weights(NamedTuple):
    """Weights by WeSpeaker's names: of the encoder, and of the classifier (projection.…), which may be empty."""

    encoder: dict[str, Tensor]
    classifier: dict[str, Tensor]


def read_settings(path: Path) -> Settings:
    """Read a WeSpeaker config.yaml.

    Raises:
        UserError: it cannot be read, or describes something that this program does not support: another network, other
            features, another pooling, two embedding layers.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise UserError(f"{path}: not a readable configuration: nested too deeply") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable configuration: {str(error).splitlines()[0]}") from error
    root = _Section(path, "", content)
    model = root.text("model", "")
    named = re.fullmatch(r"ResNet(\d{1,4})", model)
    if not named:
        raise UserError(
            f"{path}: model is {model or 'missing'}; only WeSpeaker's plain ResNets can be imported: ResNet18, 34, 50, "
            "101, 152, 221, 293"
        )
    arguments = root.section("model_args")
    mel_bins, embedding = arguments.whole("feat_dim", 80), arguments.whole("embed_dim", None)
    arguments.must_be("pooling_func", "TSTP", "statistics pooling (TSTP) is the only one that this network has")
    arguments.must_be("two_emb_layer", False, "only networks with one embedding layer can be imported")
    data = root.section("dataset_args")
    _check_features(data, mel_bins)
    projection = root.section("projection_args")
    return Settings(
        model=model,
        depth=int(named[1]),
        mel_bins=mel_bins,
        embedding=embedding,
        classifier=projection.text("project_type", "") or None,
        scale=projection.number("scale", 32.0),
        crop_seconds=data.whole("num_frms", 2 * _FRAMES_PER_SECOND) / _FRAMES_PER_SECOND,
    )


def _check_features(data: "_Section", mel_bins: int) -> None:
    """Refuse features other than Kaldi's log-mel with the mean subtracted."""
    why = "the features of this program are fixed"
    data.must_be("frontend", "fbank", why)
    data.must_be("resample_rate", 16000, why)
    data.must_be("cmvn", True, why)
    normalisation = data.section("cmvn_args")
    normalisation.must_be("norm_mean", True, why)
    normalisation.must_be("norm_var", False, why)
    mel = data.section("fbank_args")
    mel.must_be("num_mel_bins", mel_bins, "it must be model_args.feat_dim")
    mel.must_be("frame_length", 25, why)
    mel.must_be("frame_shift", 10, why)


def read_weights(path: Path) -> Weights:
    """Read a WeSpeaker checkpoint: plain weights, or wrapped in a dictionary or with DataParallel's prefixes.

    Raises:
        UserError: it cannot be read, or contains anything but tensors of finite numbers.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead the unpickler to errors of any kind
        raise UserError(
            f"{path}: cannot be read as weights; give the .pt file that WeSpeaker's training or averaging wrote"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: not a WeSpeaker checkpoint; it must be a dictionary of tensors")
    weights = {_plain_name(str(name)): value for name, value in content.items()}
    broken = [name for name, value in weights.items() if not value.float().isfinite().all()]
    if broken:
        raise UserError(f"{path}: {broken[0]} contains NaN or infinity")
    classifier = {name: value for name, value in weights.items() if name.startswith("projection.")}
    return Weights({name: value for name, value in weights.items() if name not in classifier}, classifier)


def network_config(encoder: Mapping[str, Tensor], settings: Settings, path: Path) -> NetworkConfig:
    """Return the network that weights belong to, checked against the settings.

    Args:
        encoder: from `read_weights`.
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
        )
    kind: Literal["basic", "bottleneck"] = "bottleneck" if "layer1.0.conv3.weight" in encoder else "basic"
    depth = 2 + sum(blocks) * (3 if kind == "bottleneck" else 2)
    if depth != settings.depth:
        raise UserError(
            f"{path}: has the blocks of a ResNet{depth}, {'-'.join(map(str, blocks))} {kind}, but the configuration is "
            f"of a {settings.model}"
        )
    if segment.shape[0] != settings.embedding:
        raise UserError(
            f"{path}: its embedding has {segment.shape[0]} values, but the configuration's embed_dim is "
            f"{settings.embedding}"
        )
    first, second, third, fourth = blocks
    config = NetworkConfig((first, second, third, fourth), stem.shape[0], settings.embedding, settings.mel_bins, kind)
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


def classes_of(weights: Weights, speakers: Sequence[str], settings: Settings, path: Path) -> Tensor:
    """Return the classifier's weights of the speakers at speed 1.0, float32 [speakers, embedding].

    Args:
        weights: from `read_weights`, with a classifier.
        speakers: of the classes, in their order.
        settings: from `read_settings`.
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
    if classes.ndim != 2 or classes.shape[1] != settings.embedding:
        raise UserError(f"{path}: its classifier is not of embeddings of {settings.embedding} values; {instead}")
    if classes.shape[0] not in (count, _SPEEDS * count):
        raise UserError(
            f"{path}: its classifier has {classes.shape[0]} classes, but {count} speakers are listed; there must be as "
            f"many, or a third as many with speed perturbation; {instead}"
        )
    return classes[:count].float()


def _plain_name(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


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


class _Section:
    """A mapping in a WeSpeaker configuration; missing keys have defaults."""

    def __init__(self, path: Path, name: str, content: Any) -> None:
        if content is None:
            content = {}
        if not isinstance(content, dict):
            raise UserError(f"{path}: {name or 'the file'} must be a section of keys")
        self._path, self._name, self._content = path, name, content

    def section(self, key: str) -> "_Section":
        return _Section(self._path, self._full(key), self._content.get(key))

    def text(self, key: str, default: str) -> str:
        value = self._content.get(key, default)
        if not isinstance(value, str):
            self._refuse(key, value, "a word")
        return value

    def whole(self, key: str, default: int | None) -> int:
        value = self._content.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            self._refuse(key, value, "a whole number above 0")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._content.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            self._refuse(key, value, "a number above 0")
        return float(value)

    def must_be(self, key: str, wanted: str | bool | int, why: str) -> None:
        """Raise UserError if the key has another value than `wanted`."""
        value = self._content.get(key, wanted)
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            self._refuse(key, value, f"{yaml.safe_dump(wanted).split()[0]}: {why}")

    def _full(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _refuse(self, key: str, value: Any, wanted: str) -> NoReturn:
        found = "missing" if value is None else value
        raise UserError(f"{self._path}: {self._full(key)} must be {wanted}; it is {found}")
