"""How a network is computed: device, precision, the layout of its activations, compiled kernels."""

import os
import shutil

import torch
from torch import nn

from speakerlens.training.config import ComputeConfig
from speakerlens.training.distributed import World
from speakerlens.training.errors import UserError


def choose_device(name: str) -> torch.device:
    """Resolve auto, cpu or cuda. Raises UserError if there is no CUDA device where one is asked for."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # what is not in bfloat16, the front end above all, needs all of float32
    return torch.device("cuda")


def uses_bfloat16(config: ComputeConfig, device: torch.device) -> bool:
    """Whether autocast is on in training: as configured, and by itself on a CUDA device."""
    return config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")


def lay_out(encoder: nn.Module, config: ComputeConfig, device: torch.device, world: World) -> None:
    """Lay an encoder out for its device, and have it compiled at its first batch, where the configuration says so.

    Raises:
        UserError: it is to be compiled, and that cannot be done here.
    """
    if device.type == "cuda" and config.channels_last:
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.compile:
        _check_compiler(config, device, world)
        encoder.compile(dynamic=False)


def _check_compiler(config: ComputeConfig, device: torch.device, world: World) -> None:
    if device.type == "cpu" and uses_bfloat16(config, device):
        # Seen with torch 2.13: kernels compiled for bfloat16 on a CPU write where they must not.
        raise UserError("compute.compile: on a CPU only with compute.precision float32, not bfloat16")
    if device.type == "cpu" and world.size > 1:
        raise UserError("compute.compile: on CPUs only in a single process, not under torchrun")
    variable, *names = ["CXX", "g++", "clang++"] if device.type == "cpu" else ["CC", "gcc", "clang"]
    if not any(shutil.which(name) for name in [os.environ.get(variable, ""), *names]):
        raise UserError(
            f"compute.compile: needs a compiler ({' or '.join(names)}), and there is none; install one, or leave "
            "compute.compile false"
        )
