"""Find the weights and the configuration in what a user downloaded: a folder or a file."""

import re
from pathlib import Path

from speakerlens.training.errors import UserError
from speakerlens.training.imported.kinds import FITS

CONFIG = "config.yaml"
_WEIGHTS = ("pytorch_model.bin", "model.safetensors", "avg_model.pt", "final_model.pt")
"""Names that are used as they are; of several in a folder the first."""

_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_LONGEST_NAME = 63


def find_files(path: Path) -> tuple[Path, Path | None]:
    """Return the file with the weights and the configuration beside it, None where there is none.

    Args:
        path: the file with the weights, or a folder with one.

    Raises:
        UserError: there is nothing, or no or more than one file of weights; the message says what lies there.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give the folder that you downloaded")
    weights = _weights(path) if path.is_dir() else path
    config = weights.parent / CONFIG
    return weights, config if config.is_file() else None


def variant_name(path: Path) -> str:
    """Return a name for the model that a file or a folder holds: of the folder, in the letters that a name may have.

    In the cache of the Hugging Face hub folders are called after revisions, and the model's name stands further up.
    """
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    cached = [part for part in folder.parts if part.startswith("models--")]
    name = cached[-1].rpartition("--")[2] if cached else folder.name
    return plain_name(name) or "imported"


def plain_name(name: str) -> str:
    """Return a name in small letters, digits and hyphens, at most 63; empty if it has none of them."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_NAME].strip("-")


def _weights(folder: Path) -> Path:
    files = sorted(each for each in folder.iterdir() if each.is_file())
    known = [folder / name for name in _WEIGHTS if folder / name in files]
    others = [each for each in files if each.suffix in _ENDINGS]
    if known:
        return known[0]
    if len(others) == 1:
        return others[0]
    if others:
        raise UserError(f"{folder}: several files of weights, {_listed(others)}; give the one to import")
    inner = sorted(each.parent for each in folder.glob("*/*") if each.name in _WEIGHTS)
    if inner:
        raise UserError(f"{folder}: no weights there, but in {inner[0]}; give that folder")
    raise UserError(f"{folder}: no file of weights there ({_listed(files) or 'it is empty'}); what fits is {FITS}")


def _listed(files: list[Path]) -> str:
    more = f" and {len(files) - 4} more" if len(files) > 4 else ""
    return ", ".join(each.name for each in files[:4]) + more
