"""Run folders: the checkpoint that training resumes from, and the trained network that evaluation and export load.

A run folder contains config.yaml (all values, including defaults), checkpoint.pt, log.jsonl and tensorboard/. The
checkpoint is a dictionary of plain values and tensors, read with `weights_only=True`: it cannot execute code.
"""

import os
import subprocess
from dataclasses import asdict, dataclass
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
from speakerlens.training.schedule import Progress, Schedule
from speakerlens.training.variants import VARIANTS

CHECKPOINT = "checkpoint.pt"
CONFIG = "config.yaml"
LOG = "log.jsonl"
TENSORBOARD = "tensorboard"

_FORMAT = 2
_WITHOUT_AVERAGE = 1
"""The previous format, which is read too; it has no averaged weights."""


class Checkpoint(TypedDict):
    """Everything needed to resume a run exactly; the batches follow from the seed and `step`."""

    format: int
    step: int  # updates done
    variant: str
    config: str  # YAML
    speakers: list[str]  # in the order of the labels; none for an imported network without a classifier
    corpus: str  # absolute path of its folder; empty for an imported network without a corpus
    corpus_digest: str  # of the imported file where there is no corpus
    code_revision: str
    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    average: dict[str, Tensor]  # state of an AveragedModel of the network; empty if none is configured
    progress: dict[str, Any]  # fields of `training.schedule.Progress`
    random: dict[str, Any]  # state of torch's generators: "cpu", and "cuda", a list


@dataclass(frozen=True)
class Run:
    """A loaded training run.

    Attributes:
        folder: of the run.
        variant: a key of `training.variants.VARIANTS`, or the name of an imported network.
        config: as trained.
        speakers: in the order of the labels; empty for a network without a classifier.
        network: in evaluation mode; with the averaged weights of the last updates where the run has them.
        corpus_folder: absolute path of the corpus folder; None for an imported network without one.
        corpus_digest: SHA-256 of its manifest; of the imported file where there is no corpus.
        step: updates done.
        updates: of the whole run, as far as decided.
        code_revision: of the code that trained it.
    """

    folder: Path
    variant: str
    config: Config
    speakers: tuple[str, ...]
    network: SpeakerNetwork
    corpus_folder: Path | None
    corpus_digest: str
    step: int
    updates: int
    code_revision: str

    @property
    def corpus(self) -> Path:
        """The corpus folder.

        Raises:
            UserError: the run has none.
        """
        if self.corpus_folder is None:
            raise UserError(f"{self.folder}: was imported without a corpus; name one with --corpus")
        return self.corpus_folder

    @property
    def telephone(self) -> bool:
        """Whether speech through a telephone's codec or a narrow band was in the training."""
        variant, perturbation = VARIANTS.get(self.variant), self.config.perturbation
        return variant is not None and variant.copies != "none" and perturbation.codec + perturbation.band > 0

    @property
    def finished(self) -> bool:
        """Whether all updates were done."""
        return self.step >= self.updates


def load_run(run: Path, device: torch.device | str = "cpu") -> Run:
    """Load a run folder, with its network on `device` in evaluation mode.

    Raises:
        UserError: the checkpoint is missing, damaged, or not one of this program.
    """
    checkpoint = read_checkpoint(run)
    config = parse_config(checkpoint["config"], f"{run / CHECKPOINT} (its configuration)")
    network = SpeakerNetwork(config.network, config.head, len(checkpoint["speakers"]))
    try:
        network.load_state_dict(_result(checkpoint))
    except RuntimeError as error:
        raise UserError(f"{run / CHECKPOINT}: its weights do not fit its own configuration; train it again") from error
    return Run(
        folder=run,
        variant=checkpoint["variant"],
        config=config,
        speakers=tuple(checkpoint["speakers"]),
        network=network.to(device).eval(),
        corpus_folder=Path(checkpoint["corpus"]) if checkpoint["corpus"] else None,
        corpus_digest=checkpoint["corpus_digest"],
        step=checkpoint["step"],
        updates=Schedule(config, Progress(**checkpoint["progress"])).end,
        code_revision=checkpoint["code_revision"],
    )


def read_checkpoint(run: Path) -> Checkpoint:
    """Return a run folder's checkpoint, with its tensors on the CPU.

    Raises:
        UserError: it is missing, damaged, or not one of this program.
    """
    path = run / CHECKPOINT
    if not path.is_file():
        raise UserError(f"{run}: has no {CHECKPOINT}; give the folder of a training run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise all kinds of errors in the unpickler
        raise UserError(f"{path}: damaged, or not a checkpoint; delete the folder and train again") from error
    if isinstance(content, dict) and content.get("format") == _WITHOUT_AVERAGE:
        content |= {"format": _FORMAT, "average": {}}
    if isinstance(content, dict):
        content.setdefault("progress", {})  # of runs before early stopping
    if not isinstance(content, dict) or not Checkpoint.__annotations__.keys() <= content.keys():
        raise UserError(f"{path}: not a checkpoint of this program")
    if content["format"] != _FORMAT:
        raise UserError(f"{path}: has format {content['format']}, this version reads {_FORMAT}; train it again")
    return cast(Checkpoint, content)


def _result(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the resulting weights of a run: the averaged weights if there are any, else the last."""
    average = checkpoint["average"]
    if not average or not average["n_averaged"]:
        return checkpoint["network"]
    prefix = "module."
    return {name.removeprefix(prefix): value for name, value in average.items() if name.startswith(prefix)}


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Replace a run folder's checkpoint atomically.

    Raises:
        UserError: the system refuses, such as on a full disk; the checkpoint before it is kept.
    """
    unfinished = run / f".{CHECKPOINT}.{os.getpid()}"
    try:
        try:
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(run / CHECKPOINT)
        finally:
            unfinished.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        # torch raises RuntimeError while it handles the system's error, or instead of it.
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise UserError(
            f"{run / CHECKPOINT}: cannot be written ({reason}); make room for it and repeat the command, which resumes "
            "from the checkpoint before"
        ) from error


def new_checkpoint(
    step: int,
    variant: str,
    config: Config,
    corpus: Corpus | None,
    network: dict[str, Tensor],
    optimiser: dict[str, Any],
    average: dict[str, Tensor],
) -> Checkpoint:
    """Return a checkpoint with the current states of torch's random generators."""
    return {
        "format": _FORMAT,
        "step": step,
        "variant": variant,
        "config": dump_config(config),
        "speakers": [] if corpus is None else list(corpus.speakers),
        "corpus": "" if corpus is None else str(corpus.root.resolve()),
        "corpus_digest": "" if corpus is None else corpus.digest,
        "code_revision": code_revision(),
        "network": network,
        "optimiser": optimiser,
        "average": average,
        "progress": asdict(Progress()),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def restore_random(checkpoint: Checkpoint) -> None:
    """Restore the states of torch's random generators."""
    torch.set_rng_state(checkpoint["random"]["cpu"])
    if torch.cuda.is_available() and len(checkpoint["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(checkpoint["random"]["cuda"])


@cache
def code_revision() -> str:
    """Return `git describe` if the code runs from its own checkout, else the package's version."""
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
