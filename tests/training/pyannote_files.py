"""Files of the shape of pyannote/wespeaker-voxceleb-resnet34-LM, with random weights: pickled foreign classes included.

The classes are made here under the names that pyannote pickles, and are gone when a file has been written, as they are
where pyannote is not installed.
"""

import dataclasses
import enum
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.training.wespeaker_reference import ReferenceResNet

ARGUMENTS = {
    "sample_rate": 16000, "num_channels": 1, "num_mel_bins": 80, "frame_length": 25, "frame_shift": 10, "dither": 0.0,
    "window_type": "hamming", "use_energy": False,
}  # fmt: skip
TASK = "pyannote.audio.core.task"


@contextmanager
def pyannote_classes() -> Iterator[types.ModuleType]:
    """Put the classes of pyannote's `core.task` in place, for pickling."""
    names = ["pyannote", "pyannote.audio", "pyannote.audio.core", TASK]
    made = {name: types.ModuleType(name) for name in names}
    task: Any = made[TASK]
    members = {"BINARY_CLASSIFICATION": 0, "MONO_LABEL_CLASSIFICATION": 1, "REPRESENTATION": 3}
    task.Problem = enum.Enum("Problem", members, module=TASK)  # type: ignore[misc]
    task.Resolution = enum.Enum("Resolution", {"FRAME": 1, "CHUNK": 2}, module=TASK)  # type: ignore[misc]
    fields = ["problem", "resolution", "duration", "min_duration", "warm_up", "classes", "permutation_invariant"]
    task.Specifications = dataclasses.make_dataclass("Specifications", fields, namespace={"__module__": TASK})
    sys.modules.update(made)
    try:
        yield made[TASK]
    finally:
        for name in names:
            del sys.modules[name]


def checkpoint_of(weights: dict[str, Tensor], task: Any, network: str = "WeSpeakerResNet34") -> dict[str, Any]:
    """The dictionary that PyTorch Lightning saves of a pyannote model; `task` is from `pyannote_classes`."""
    specifications = task.Specifications(
        task.Problem.REPRESENTATION, task.Resolution.CHUNK, 5.0, None, (0.0, 0.0), None, False
    )
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.1.1",
        "state_dict": {f"resnet.{name}": tensor for name, tensor in weights.items()},
        "hyper_parameters": dict(ARGUMENTS),
        "pyannote.audio": {
            "versions": {"torch": torch.torch_version.TorchVersion("2.1.1+cu121"), "pyannote.audio": "3.1.0"},
            "architecture": {"module": "pyannote.audio.models.embedding.wespeaker", "class": network},
            "specifications": specifications,
        },
    }


def write_pyannote(folder: Path, network: ReferenceResNet, depth: int = 34, **changes: Any) -> Path:
    """Write pytorch_model.bin and config.yaml; `changes` replace entries of the checkpoint. Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with pyannote_classes() as task:
        content = checkpoint_of(network.state_dict(), task, f"WeSpeakerResNet{depth}")
        torch.save({**content, **changes}, folder / "pytorch_model.bin")
    write_config(folder, depth)
    return folder


def write_safetensors(folder: Path, network: ReferenceResNet, prefix: str = "resnet.", depth: int = 34) -> Path:
    """Write model.safetensors and config.yaml; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file({f"{prefix}{name}": value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    write_config(folder, depth)
    return folder


def write_config(folder: Path, depth: int = 34, **changes: Any) -> None:
    """Write pyannote's config.yaml."""
    target = f"pyannote.audio.models.embedding.WeSpeakerResNet{depth}"
    model = {"_target_": target, **ARGUMENTS, **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}), encoding="utf-8")
