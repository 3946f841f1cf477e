"""Read checkpoints whose pickles name classes of other packages: nothing is imported or executed.

A checkpoint of PyTorch Lightning holds more than tensors: objects of pyannote's classes, versions, settings. torch's
restricted unpickler (`weights_only=True`) refuses them, as it does not know the classes. Here each name from a known
package gets an inert class of the same name, which keeps what it is given and does nothing. All other names are
refused.
"""

import pickle
import re
from pathlib import Path
from typing import Any, NoReturn

import torch

from speakerlens.training.errors import UserError

_PACKAGES = ("pyannote.", "pytorch_lightning.", "lightning.", "lightning_fabric.", "torchmetrics.", "omegaconf.")
"""Packages whose classes may be named in a checkpoint, as they describe the training."""

_NAMES = frozenset(
    {
        "torch.torch_version.TorchVersion",
        "numpy.dtype",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "argparse.Namespace",
    }
)


class StandIn(dict[Any, Any]):
    """An object of a class that is not there: it keeps its arguments and its state, and does nothing.

    Attributes:
        arguments: of its construction.
        state: its attributes by name, as far as they were pickled so.
    """

    arguments: tuple[Any, ...]
    state: dict[str, Any]

    def __new__(cls, *arguments: Any) -> "StandIn":
        """Return an object with these arguments."""
        made = super().__new__(cls)
        made.arguments, made.state = arguments, {}
        return made

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Keep a dictionary of attributes; ignore any other state."""
        self.state = dict(state) if isinstance(state, dict) else {}

    def __hash__(self) -> int:  # type: ignore[override]
        """Return a hash by identity: members of enumerations are keys of dictionaries."""
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def read_pickle(path: Path) -> Any:
    """Return the content of a file that `torch.save` wrote; objects of foreign classes are of type `StandIn`.

    Raises:
        UserError: it names a class or function that is not known to be harmless, or is damaged.
    """
    names = _foreign_names(path)
    for name in names:
        if not _is_harmless(name):
            _refuse(path, name)
    stand_ins = [(_stand_in(name), name) for name in names]
    try:
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead the unpickler to errors of any kind
        found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found:
            _refuse(path, found[1])
        raise UserError(
            f"{path}: cannot be read as weights; give the file that torch.save wrote, whole, such as avg_model.pt of "
            "WeSpeaker or pytorch_model.bin of pyannote"
        ) from error


def _foreign_names(path: Path) -> list[str]:
    """Return the classes and functions of a file's pickle that torch does not know as safe; none if it has no list."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001 - not a zip file, or damaged: reading it will say so
        return []


def _is_harmless(name: str) -> bool:
    return name in _NAMES or name.startswith(_PACKAGES)


def _stand_in(name: str) -> type[StandIn]:
    module, _, own = name.rpartition(".")
    return type(own, (StandIn,), {"__module__": module})


def _refuse(path: Path, name: str) -> NoReturn:
    raise UserError(
        f"{path}: its pickle calls {name}, which has no place among weights and could run a program; nothing of it "
        "was executed. Get the file from its author as safetensors, or from another source"
    )
