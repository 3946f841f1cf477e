"""Run folders: the checkpoint that training resumes from, and the trained network that others load.

A run folder holds config.yaml (every value, defaults included), checkpoint.pt, log.jsonl and tensorboard/. The
checkpoint is a dictionary of plain values and tensors, read with `weights_only=True`: nothing in it can run code.
"""

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from speakerlens.training.config import Config, dump_config, parse_config
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.model.network import SpeakerNetwork

CHECKPOINT = "checkpoint.pt"
CONFIG = "config.yaml"
LOG = "log.jsonl"
TENSORBOARD = "tensorboard"

_FORMAT = 2
_WITHOUT_AVERAGE = 1
"""A format that is read as well: the one before, which knew no averaged weights."""


class Checkpoint(TypedDict):
    """Everything a run needs to go on as if it had never stopped; the batches follow from `seed` and `step`."""

    format: int
    step: int  # updates done
    variant: str
    config: str  # YAML
    speakers: list[str]  # in the order of the labels
    corpus: str  # absolute path of its folder
    corpus_digest: str
    code_revision: str
    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    average: dict[str, Tensor]  # state of an AveragedModel of the network; empty if none is configured
    random: dict[str, Any]  # state of torch's generators: "cpu", and "cuda", a list


@dataclass(frozen=True)
class Run:
    """A training run, loaded for use.

    variant: a key of `training.variants.VARIANTS`, or an imported network's name.
    speakers: their order is the order of the labels.
    network: in evaluation mode; the average of the last updates' weights, where one was taken.
    corpus: absolute path of the corpus folder. step: updates done.
    """

    variant: str
    config: Config
    speakers: tuple[str, ...]
    network: SpeakerNetwork
    corpus: Path
    corpus_digest: str
    step: int
    code_revision: str

    @property
    def finished(self) -> bool:
        """Whether all updates were done."""
        return self.step >= self.config.updates


def load_run(run: Path, device: torch.device | str = "cpu") -> Run:
    """Load the network of a run folder, in evaluation mode.

    Raises UserError if there is no checkpoint, or it is damaged, or is not one of ours.
    """
    checkpoint = read_checkpoint(run)
    config = parse_config(checkpoint["config"], f"{run / CHECKPOINT} (its configuration)")
    network = SpeakerNetwork(config.network, config.head, len(checkpoint["speakers"]))
    try:
        network.load_state_dict(_result(checkpoint))
    except RuntimeError as error:
        raise UserError(f"{run / CHECKPOINT}: its weights do not fit its own configuration; train it again") from error
    return Run(
        variant=checkpoint["variant"],
        config=config,
        speakers=tuple(checkpoint["speakers"]),
        network=network.to(device).eval(),
        corpus=Path(checkpoint["corpus"]),
        corpus_digest=checkpoint["corpus_digest"],
        step=checkpoint["step"],
        code_revision=checkpoint["code_revision"],
    )


def read_checkpoint(run: Path) -> Checkpoint:
    """Read a run folder's checkpoint, tensors on the CPU; UserError if it is missing, damaged or not one of ours."""
    path = run / CHECKPOINT
    if not path.is_file():
        raise UserError(f"{run}: no {CHECKPOINT} there; `python -m training fit --out {run} …` makes one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead the unpickler to errors of any kind
        raise UserError(f"{path}: damaged, or not a checkpoint; delete the folder and train again") from error
    if isinstance(content, dict) and content.get("format") == _WITHOUT_AVERAGE:
        content |= {"format": _FORMAT, "average": {}}
    if not isinstance(content, dict) or not Checkpoint.__annotations__.keys() <= content.keys():
        raise UserError(f"{path}: not a checkpoint of this program; it lacks what `python -m training fit` writes")
    if content["format"] != _FORMAT:
        raise UserError(f"{path}: has format {content['format']}, this version reads {_FORMAT}; train it again")
    return cast(Checkpoint, content)


def _result(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Give the weights that a run is about: the average of the last, if there is one yet."""
    average = checkpoint["average"]
    if not average or not average["n_averaged"]:
        return checkpoint["network"]
    prefix = "module."
    return {name.removeprefix(prefix): value for name, value in average.items() if name.startswith(prefix)}


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Replace a run folder's checkpoint in one step: whatever happens, the old one or the new one is there, whole."""
    unfinished = run / f".{CHECKPOINT}.{os.getpid()}"
    try:
        with unfinished.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(run / CHECKPOINT)
    finally:
        unfinished.unlink(missing_ok=True)


def new_checkpoint(
    step: int,
    variant: str,
    config: Config,
    corpus: Corpus,
    network: dict[str, Tensor],
    optimiser: dict[str, Any],
    average: dict[str, Tensor],
) -> Checkpoint:
    """Put a checkpoint together, with torch's random states as they are now."""
    return {
        "format": _FORMAT,
        "step": step,
        "variant": variant,
        "config": dump_config(config),
        "speakers": list(corpus.speakers),
        "corpus": str(corpus.root.resolve()),
        "corpus_digest": corpus.digest,
        "code_revision": code_revision(),
        "network": network,
        "optimiser": optimiser,
        "average": average,
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def restore_random(checkpoint: Checkpoint) -> None:
    """Put torch's generators back to where they were."""
    torch.set_rng_state(checkpoint["random"]["cpu"])
    if torch.cuda.is_available() and len(checkpoint["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(checkpoint["random"]["cuda"])


@cache
def code_revision() -> str:
    """Name the code: `git describe` if it runs from its own checkout, else the package's version."""
    package = Path(__file__).resolve().parent
    try:
        top = _git(package, "rev-parse", "--show-toplevel")
        if Path(top).resolve() == package.parent:
            return _git(package, "describe", "--always", "--dirty", "--tags")
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        return metadata.version("speakerlens")
    except metadata.PackageNotFoundError:
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)  # noqa: S603
    return done.stdout.strip()
