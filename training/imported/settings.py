"""Read the configurations of WeSpeaker and of pyannote: what features and what pooling a network was trained with.

Both are YAML files called config.yaml. WeSpeaker's describes the training; pyannote's names a class (`_target_`) and
its arguments, which a checkpoint of pyannote also holds itself.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from speakerlens.training.errors import UserError

_FRAMES_PER_SECOND = 100
_TARGET = "_target_"
_SUPPORTED = "only WeSpeaker's plain ResNets can be imported: ResNet18, 34, 50, 101, 152, 221, 293"
_FIXED = "the features of this program are fixed"
_PYANNOTE_CROP_SECONDS = 6.0
"""Length of the crops that the large-margin models were fine-tuned on (num_frms: 600), which pyannote's files omit."""

_PYANNOTE_FIXED: Mapping[str, object] = {
    "sample_rate": 16000,
    "num_channels": 1,
    "frame_length": 25,
    "frame_shift": 10,
    "dither": 0,
    "window_type": "hamming",
    "use_energy": False,
}
"""The arguments of pyannote's wrapper that the front end has, and cannot change."""


@dataclass(frozen=True)
class Settings:
    """The settings of a configuration that inference needs.

    Attributes:
        model: such as "ResNet34".
        depth: the number in it.
        mel_bins: rows of the log-mel features.
        embedding: size of the embedding; None where the configuration does not say.
        classifier: kind of the projection ("arc_margin", …), or None.
        scale: factor on its cosines.
        crop_seconds: length of the training crops.
    """

    model: str
    depth: int
    mel_bins: int
    embedding: int | None
    classifier: str | None
    scale: float
    crop_seconds: float


def read_settings(path: Path) -> Settings:
    """Read a config.yaml of WeSpeaker or of pyannote.

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
    if root.has(_TARGET):
        return _pyannote(root)
    if root.is_section("model"):
        return _pyannote(root.section("model"))
    return _wespeaker(root)


def described_settings(path: Path, network: str, arguments: Mapping[str, Any]) -> Settings:
    """Return the settings that a checkpoint of pyannote holds itself.

    Args:
        path: of the checkpoint, for messages.
        network: class of its network.
        arguments: of that class.

    Raises:
        UserError: another network, or other features, than this program has.
    """
    return _pyannote(_Section(path, "", {_TARGET: network, **arguments}))


def _wespeaker(root: "_Section") -> Settings:
    model = root.text("model", "")
    named = re.fullmatch(r"ResNet(\d{1,4})", model)
    if not named:
        raise UserError(f"{root.path}: model is {model or 'missing'}; {_SUPPORTED}")
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
    data.must_be("frontend", "fbank", _FIXED)
    data.must_be("resample_rate", 16000, _FIXED)
    data.must_be("cmvn", True, _FIXED)
    normalisation = data.section("cmvn_args")
    normalisation.must_be("norm_mean", True, _FIXED)
    normalisation.must_be("norm_var", False, _FIXED)
    mel = data.section("fbank_args")
    mel.must_be("num_mel_bins", mel_bins, "it must be model_args.feat_dim")
    mel.must_be("frame_length", 25, _FIXED)
    mel.must_be("frame_shift", 10, _FIXED)


def _pyannote(section: "_Section") -> Settings:
    """Return the settings of a network that pyannote's class and its arguments describe."""
    target = section.text(_TARGET, "")
    named = re.fullmatch(r"WeSpeakerResNet(\d{1,4})", target.rpartition(".")[2])
    if not named:
        raise UserError(
            f"{section.path}: {_TARGET} is {target or 'missing'}; of pyannote's networks only WeSpeakerResNet34, 152, "
            "221 and 293 can be imported"
        )
    for key, wanted in _PYANNOTE_FIXED.items():
        section.must_be(key, wanted, _FIXED)
    return Settings(
        model=f"ResNet{named[1]}",
        depth=int(named[1]),
        mel_bins=section.whole("num_mel_bins", 80),
        embedding=None,
        classifier=None,
        scale=32.0,
        crop_seconds=_PYANNOTE_CROP_SECONDS,
    )


class _Section:
    """A mapping in a configuration; missing keys have defaults.

    Args:
        path: of the file, for messages.
        name: of the mapping in it; empty for the whole.
        content: as parsed.
    """

    def __init__(self, path: Path, name: str, content: Any) -> None:
        if content is None:
            content = {}
        if not isinstance(content, dict):
            raise UserError(f"{path}: {name or 'the file'} must be a section of keys")
        self.path, self._name, self._content = path, name, content

    def has(self, key: str) -> bool:
        return key in self._content

    def is_section(self, key: str) -> bool:
        return isinstance(self._content.get(key), dict)

    def section(self, key: str) -> "_Section":
        return _Section(self.path, self._full(key), self._content.get(key))

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

    def must_be(self, key: str, wanted: object, why: str) -> None:
        """Raise UserError if the key has another value than `wanted`."""
        value = self._content.get(key, wanted)
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            self._refuse(key, value, f"{yaml.safe_dump(wanted).split()[0]}: {why}")

    def _full(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _refuse(self, key: str, value: Any, wanted: str) -> NoReturn:
        found = "missing" if value is None else value
        raise UserError(f"{self.path}: {self._full(key)} must be {wanted}; it is {found}")
