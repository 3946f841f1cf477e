"""Read weights from a PyTorch checkpoint or a safetensors file, under WeSpeaker's names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speakerlens.training.errors import UserError
from speakerlens.training.imported.kinds import FITS, refusal
from speakerlens.training.imported.pickles import StandIn, read_pickle

_WRAPPERS = ("model", "state_dict", "model_state_dict")
_PREFIXES = ("module.", "model.", "resnet.")
_DESCRIPTION = "pyannote.audio"
"""Under this key a checkpoint of pyannote has the class of its network."""


class Weights(NamedTuple):
    """Weights by WeSpeaker's names: of the encoder, and of the classifier (projection.…), which may be empty."""

    encoder: dict[str, Tensor]
    classifier: dict[str, Tensor]


class Checkpoint(NamedTuple):
    """The content of a file with weights.

    Attributes:
        weights: by WeSpeaker's names.
        network: class of the network as a checkpoint of pyannote names it, such as WeSpeakerResNet34; else None.
        arguments: the network's arguments as the checkpoint has them (PyTorch Lightning's hyper_parameters).
    """

    weights: Weights
    network: str | None
    arguments: Mapping[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint: plain weights, or wrapped in a dictionary, or with the prefixes of wrapping modules.

    Raises:
        UserError: it cannot be read, or contains anything but tensors of finite numbers; the message says what the file
            is and what would fit.
    """
    content = _read(path)
    network, arguments = _description(content)
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(each, Tensor) for each in content.values()):
        raise UserError(f"{path}: not a checkpoint of weights; it must be a dictionary of tensors: {FITS}")
    weights = {_plain_name(str(name)): value for name, value in content.items()}
    broken = [name for name, value in weights.items() if not value.float().isfinite().all()]
    if broken:
        raise UserError(f"{path}: {broken[0]} contains NaN or infinity")
    classifier = {name: value for name, value in weights.items() if name.startswith("projection.")}
    encoder = {name: value for name, value in weights.items() if name not in classifier}
    return Checkpoint(Weights(_with_counters(encoder), classifier), network, arguments)


def _read(path: Path) -> Any:
    try:
        refused = refusal(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if refused is not None:
        raise UserError(f"{path}: cannot be read as weights: it is {refused}")
    if path.suffix != ".safetensors":
        return read_pickle(path)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({str(error).splitlines()[0]}); download it again"
        ) from error


def _description(content: Any) -> tuple[str | None, Mapping[str, Any]]:
    """Return the network's class and arguments that a checkpoint of pyannote holds."""
    if not isinstance(content, dict) or not isinstance(content.get(_DESCRIPTION), dict):
        return None, {}
    architecture = content[_DESCRIPTION].get("architecture")
    network = architecture.get("class") if isinstance(architecture, dict) else None
    arguments = content.get("hyper_parameters")
    plain = {k: v for k, v in arguments.items() if not isinstance(v, StandIn)} if isinstance(arguments, dict) else {}
    return network if isinstance(network, str) else None, plain


def _with_counters(encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's weights with the counters of its normalisations, 0 where a safetensors file lacks them."""
    counters = {
        f"{name.removesuffix('running_mean')}num_batches_tracked": torch.tensor(0)
        for name in encoder
        if name.endswith(".running_mean")
    }
    return {**counters, **encoder}


def _plain_name(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name
