"""How a network is computed: device, precision, the layout of its activations, compiled kernels."""

import os
import shutil

import torch
from torch import nn

from speakerlens.training.config import ComputeConfig
from speakerlens.training.distributed import World
from speakerlens.training.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device for auto, cpu or cuda; raise UserError if CUDA is requested and not available."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # the front end and all else outside autocast need full float32
    return torch.device("cuda")


def uses_bfloat16(config: ComputeConfig, device: torch.device) -> bool:
    """Return whether training uses autocast: as configured; with "auto", on a CUDA device."""
    return config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")


def prepare_encoder(encoder: nn.Module, config: ComputeConfig, device: torch.device, world: World) -> None:
    """Apply the configured memory format to an encoder; if configured, compile it at its first batch.

    Raises:
        UserError: compilation is configured and not possible on this machine.
    """
    if device.type == "cuda" and config.channels_last:
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.compile:
        _check_compiler(config, device, world)
        encoder.compile(dynamic=False)


def _check_compiler(config: ComputeConfig, device: torch.device, world: World) -> None:
    if device.type == "cpu" and uses_bfloat16(config, device):
        # torch 2.13: kernels compiled for bfloat16 on a CPU write out of bounds.
        raise UserError("compute.compile: on a CPU, compute.precision must be float32, not bfloat16")
    if device.type == "cpu" and world.size > 1:
        raise UserError("compute.compile: on a CPU it needs a single process, not torchrun")
    variable, *names = ["CXX", "g++", "clang++"] if device.type == "cpu" else ["CC", "gcc", "clang"]
    if not any(shutil.which(name) for name in [os.environ.get(variable, ""), *names]):
        raise UserError(
            f"compute.compile: needs a compiler ({' or '.join(names)}); install one, or set compute.compile to false"
        )
