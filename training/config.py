"""The configuration of a training run: one frozen dataclass per concern, read from YAML (`training/configs/`)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Field

from speakerlens.settings import STRICT, SettingsError, Tree, override_yaml, parse_yaml, read_yaml, validate
from speakerlens.training.errors import UserError

InterferenceKind = Literal["noise", "music", "babble", "speaker", "reverb"]
Activation = Literal["s1", "s2", "s3", "s4", "statistics", "embedding"]
Distance = Literal["mse", "l1", "cosine"]
Codec = Literal["mu-law", "a-law", "gsm", "vorbis"]
Band = Literal["narrow", "telephone"]

Count = Annotated[int, Field(ge=1)]
Blocks = Annotated[int, Field(ge=1, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Decibel = Annotated[float, Field(ge=-60, le=60)]
Talkers = Annotated[int, Field(ge=2, le=100)]
Speed = Annotated[float, Field(ge=0.9, le=1.1)]


class _Section:
    """Base of a section: strict types, finite numbers, no unknown keys, when read from YAML."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class NetworkConfig(_Section):
    """The ResNet; blocks (3, 4, 6, 3), width 32 and embedding 256 are ResNet-34, and ResNet-50 with bottlenecks."""

    blocks: tuple[Blocks, Blocks, Blocks, Blocks]
    """Residual blocks in each of the four stages"""
    width: Annotated[int, Field(ge=1, le=1024)]
    """Channels of the first stage; each further stage has twice as many as the one before"""
    embedding: Annotated[int, Field(ge=1, le=65_536)]
    """Size of the speaker embedding"""
    mel_bins: Annotated[int, Field(ge=8, le=256)] = 80
    """Rows of the log-mel front end"""
    block: Literal["basic", "bottleneck"] = "basic"
    """Two 3x3 convolutions; or 1x1, 3x3 and 1x1, and four times as many channels between blocks"""


@dataclass(frozen=True)
class HeadConfig(_Section):
    """The objective on the embedding: additive angular margin (ArcFace, Deng et al. 2019) or plain softmax."""

    kind: Literal["aam", "softmax"] = "aam"
    scale: Annotated[float, Field(ge=0.001, le=1000)] = 32.0
    """Factor on the cosines (`aam` only)"""
    margin: Annotated[float, Field(ge=0, le=1.5)] = 0.2
    """Angle in radians added between an utterance and its own speaker, once fully grown (`aam` only)"""
    margin_from: Share = 0.0
    """Share of the updates before the margin begins to grow from 0"""
    margin_until: Share = 0.5
    """Share of the updates after which it is fully grown; it grows linearly in between"""

    def __post_init__(self) -> None:
        """Refuse a growth that ends before it begins."""
        if self.margin_until < self.margin_from:
            raise ValueError(
                f"margin_until ({self.margin_until:g}) must not be below margin_from ({self.margin_from:g})"
            )


@dataclass(frozen=True)
class DataConfig(_Section):
    """Crops of speech."""

    crop_seconds: Annotated[float, Field(ge=0.2, le=60)] = 2.0
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 32
    """Crops per update; pair variants use each twice, `da-2x` draws twice as many, `act-da` 1.75 times"""
    read_ahead: Count = 4
    """Batches that are read while the network computes"""
    readers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads that read them"""
    cache_megabytes: NotNegative = 512.0
    """Training speech up to this size as 16-bit samples (31 MiB per 1,000 s) is decoded once and cached per process;
    crops of larger corpora are read by seeking in the files"""


@dataclass(frozen=True)
class ComputeConfig(_Section):
    """How training computes the network; dev accuracy and evaluation always use float32."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of convolutions and matrix products (front end, pooling and head always in float32); auto: bfloat16 on a CUDA
    device, float32 on a CPU"""
    channels_last: bool = True
    """Whether activations use the memory format that tensor cores prefer; CUDA only"""
    compile: bool = False
    """Whether to compile the encoder (`torch.compile`), which takes minutes and rounds differently; on a CPU it needs
    float32 and a C++ compiler"""


def _default_snr() -> Mapping[InterferenceKind, tuple[float, float]]:
    kinds: tuple[InterferenceKind, ...] = ("noise", "music", "babble", "speaker", "reverb")
    return dict.fromkeys(kinds, (-5.0, 20.0))


@dataclass(frozen=True)
class InterferenceConfig(_Section):
    """The corruption of copies. The variant decides which rows of a batch are copies (`training/variants.py`)."""

    share: Share = 0.5
    """Share of the rows of `da`, `da-2x` and `act-da` that are corrupted; `clean` has none, pairs half"""
    snr_db: Mapping[InterferenceKind, tuple[Decibel, Decibel]] = field(default_factory=_default_snr)
    """Lowest and highest SNR of each kind, drawn uniformly in dB (`reverb`: direct sound to reverberation); a kind
    that is not listed is not used"""
    weights: Mapping[InterferenceKind, Positive] = field(default_factory=dict)
    """Relative probability of each kind; 1 for a kind without a weight"""
    talkers: tuple[Talkers, Talkers] = (3, 7)
    """Fewest and most talkers in babble"""
    combine: Share = 0.0
    """Share of the copies with two different kinds at once, each at its own SNR to the dry speech"""

    def __post_init__(self) -> None:
        """Refuse inverted ranges, an empty list, and settings of or for kinds that are not listed."""
        for kind, (low, high) in self.snr_db.items():
            if low > high:
                raise ValueError(f"snr_db.{kind} must be [lowest, highest], not [{low:g}, {high:g}]")
        if not self.snr_db:
            raise ValueError("snr_db must list at least one kind")
        unlisted = [kind for kind in self.weights if kind not in self.snr_db]
        if unlisted:
            raise ValueError(f"weights lists {unlisted[0]}, which snr_db does not")
        if self.talkers[0] > self.talkers[1]:
            raise ValueError(f"talkers must be [fewest, most], not [{self.talkers[0]}, {self.talkers[1]}]")
        if self.combine > 0 and len(self.snr_db) < 2:
            raise ValueError("combine needs two kinds in snr_db")


@dataclass(frozen=True)
class PerturbationConfig(_Section):
    """Speed perturbation and codecs (`training/data/perturbation.py`); off by default."""

    speed: Share = 0.0
    """Share of the crops, in every variant, whose speed is changed; the speaker stays the same"""
    factors: tuple[Speed, ...] = (0.95, 1.05)
    """Speeds to draw from; pitch and formants change along"""
    codec: Share = 0.0
    """Share of the corrupted copies that pass through a codec, speech and interference together"""
    codecs: tuple[Codec, ...] = ("mu-law", "a-law", "gsm", "vorbis")
    """Codecs to draw from; all but `vorbis` are limited to 4 kHz"""
    band: Share = 0.0
    """Share of the corrupted copies without a codec that are limited to a band"""
    bands: tuple[Band, ...] = ("narrow", "telephone")
    """Bands to draw from: below 4 kHz, as of speech recorded at 8 kHz, or 300 to 3,400 Hz"""
    alone: Share = 0.0
    """Share of the copies with a codec or a band that get no interference, like a quiet call"""

    def __post_init__(self) -> None:
        """Refuse empty or repeating lists."""
        for name, values in (("factors", self.factors), ("codecs", self.codecs), ("bands", self.bands)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must list at least one value, and none of them twice")


@dataclass(frozen=True)
class ObjectiveConfig(_Section):
    """The alignment term of `act-da` and `act-pair`; the other variants have none."""

    align: tuple[Activation, ...] = ("embedding",)
    """Activations of the corrupted copy that are pulled to the clean original's"""
    distance: Distance = "mse"
    weight: NotNegative = 1.0
    """Weight of the mean distance beside the cross-entropy"""
    clean_gradient: bool = False
    """Whether the clean original is pulled towards its copy too (an update of `act-da` then costs more); else it is a
    fixed target"""

    def __post_init__(self) -> None:
        """Refuse an empty or repeating list."""
        if not self.align or len(set(self.align)) != len(self.align):
            raise ValueError("align must list at least one activation, and none of them twice")


@dataclass(frozen=True)
class OptimiserConfig(_Section):
    """The optimiser: linear warm-up to the learning rate, then decay to its final value at the last update."""

    kind: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Positive = 0.003
    """The highest, at the end of the warm-up"""
    final_learning_rate: Positive = 1e-5
    warmup: Share = 0.1
    """Share of the updates"""
    decay: Literal["cosine", "exponential", "none"] = "cosine"
    momentum: Annotated[float, Field(ge=0, le=0.9999)] = 0.9
    """Nesterov momentum (`sgd`), or the first beta (`adamw`)"""
    weight_decay: NotNegative = 1e-4
    """On weight matrices and kernels only"""
    clip_norm: Positive = 5.0
    """Largest norm of the gradient; larger ones are scaled down"""
    average_last: Share = 0.0
    """Share of the updates, the last ones, whose averaged weights are the result (stochastic weight averaging,
    Izmailov et al. 2018); 0 uses the last update's weights"""


@dataclass(frozen=True)
class IntervalConfig(_Section):
    """Intervals, in updates."""

    log: Count = 10
    dev: Count = 100
    """Accuracy on the dev split, clean and corrupted"""
    checkpoint: Count = 100
    dev_utterances: Count = 128
    """Most utterances of the dev split to measure accuracy on"""


@dataclass(frozen=True)
class StoppingConfig(_Section):
    """Early stopping: train until the accuracy on the dev split stops rising, then let the learning rate fall.

    `optimiser.warmup` and `head.margin_*` are then shares of `ramp`, and `updates` is the most there can be.
    """

    ramp: Count = 800
    """Updates of warm-up and growing margin; the learning rate does not fall before their end, unless a bound asks"""
    patience: Count = 4
    """Measurements of dev accuracy (`intervals.dev`) without a rise after which the learning rate falls"""
    rise: NotNegative = 0.5
    """Points of accuracy, in the mean of clean and corrupted, that count as a rise"""
    decay: Share = 0.3
    """Updates with falling learning rate, as a share of those before"""
    minutes: Positive = 60.0
    """Most minutes of training; the learning rate falls early enough to end by then"""


@dataclass(frozen=True)
class Config(_Section):
    """A training run of any variant."""

    network: NetworkConfig
    updates: Count
    """Optimiser steps; with `stopping`, the most"""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    head: HeadConfig = HeadConfig()
    data: DataConfig = DataConfig()
    compute: ComputeConfig = ComputeConfig()
    interference: InterferenceConfig = field(default_factory=InterferenceConfig)
    perturbation: PerturbationConfig = PerturbationConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    intervals: IntervalConfig = IntervalConfig()
    stopping: StoppingConfig | None = None


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration from a file, with `overrides` of the form `section.key=value`.

    Raises:
        UserError: it is invalid; the message names the file and line, or the override, and what is valid.
    """
    try:
        tree = read_yaml(path)
        for override in overrides:
            override_yaml(tree, override)
    except SettingsError as error:
        raise UserError(str(error)) from error
    return _config(tree)


def parse_config(text: str, name: str) -> Config:
    """Read a configuration from its text; `name` is what messages call it. Raise UserError if it is invalid."""
    try:
        tree = parse_yaml(text, name)
    except SettingsError as error:
        raise UserError(str(error)) from error
    return _config(tree)


def dump_config(config: Config) -> str:
    """Return YAML of every value, including defaults, from which `parse_config` reads an equal configuration.

    What came later and is not used is left out, so that runs keep the text of their configuration.
    """
    values = asdict(config)
    if config.stopping is None:
        del values["stopping"]
    if not config.perturbation.band:
        del values["perturbation"]["band"], values["perturbation"]["bands"]
    if not config.perturbation.alone:
        del values["perturbation"]["alone"]
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)


def _config(tree: Tree) -> Config:
    try:
        return validate(Config, tree)
    except SettingsError as error:
        raise UserError(str(error)) from error
