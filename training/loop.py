"""One update after the other: schedules, forward and backward, and the state that a checkpoint holds."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.batches import Batch
from training.checkpoint import Checkpoint, new_checkpoint, restore_random
from training.config import ComputeConfig, Config, HeadConfig, OptimiserConfig
from training.errors import UserError
from training.manifest import Corpus
from training.network import SpeakerNetwork
from training.objectives import Loss, compute_loss, find_variant

_NAMED_ROWS = 3


class DivergedError(UserError):
    """The loss or its gradient is NaN or infinite; the message says at which update, which part, which utterances."""


class Figures(NamedTuple):
    """What is logged of an update; `accuracy` in percent over its rows, without margin."""

    loss: float
    cross_entropy: float
    alignment: float
    grad_norm: float
    accuracy: float
    learning_rate: float
    margin: float


class Trainer:
    """A network in training: everything that changes from update to update, but for the batches.

    Args:
        config: the run's configuration; its seed makes the initial weights.
        variant: a key of `training.objectives.VARIANTS`.
        corpus: gives the speakers.
        device: where to compute.
    """

    def __init__(self, config: Config, variant: str, corpus: Corpus, device: torch.device) -> None:
        self.config, self.device = config, device
        self._variant_name, self._variant, self._corpus = variant, find_variant(variant), corpus
        torch.manual_seed(config.seed)
        self.network = SpeakerNetwork(config.network, config.head, len(corpus.speakers)).to(device).train()
        self._optimiser = make_optimiser(self.network, config.optimiser)
        self._in_bfloat16 = uses_bfloat16(config.compute, device)

    def update(self, step: int, batch: Batch) -> Figures:
        """Do update `step` (from 0) on a batch. Raises DivergedError, with the weights still as they were before."""
        learning_rate = learning_rate_at(self.config.optimiser, step, self.config.updates)
        margin = margin_at(self.config.head, step, self.config.updates)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._in_bfloat16):
            loss = compute_loss(
                self.network,
                batch.audio,
                batch.labels,
                batch.originals,
                self._variant,
                self.config.objective,
                margin,
            )
        loss.total.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimiser.clip_norm)
        figures = _figures(loss, grad_norm, learning_rate, margin)
        _check_finite(figures, loss, batch, step)
        self._optimiser.step()
        return figures

    def checkpoint(self, step: int) -> Checkpoint:
        """Collect the state after `step` updates."""
        return new_checkpoint(
            step=step,
            variant=self._variant_name,
            config=self.config,
            corpus=self._corpus,
            network=self.network.state_dict(),
            optimiser=self._optimiser.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back the state of a checkpoint of the same configuration."""
        self.network.load_state_dict(checkpoint["network"])
        self._optimiser.load_state_dict(checkpoint["optimiser"])
        restore_random(checkpoint)


def uses_bfloat16(config: ComputeConfig, device: torch.device) -> bool:
    """Whether autocast is on: as configured, and by itself on a CUDA device."""
    return config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")


def make_optimiser(network: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Make the configured optimiser; weight decay on matrices and kernels, not on biases and normalisation."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.kind == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999))


def learning_rate_at(config: OptimiserConfig, step: int, updates: int) -> float:
    """Learning rate of update `step` (from 0) of `updates`: up in a straight line, then down to the final rate."""
    warmup = round(config.warmup * updates)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, updates - 1 - warmup)
    high, low = config.learning_rate, config.final_learning_rate
    if config.decay == "cosine":
        return low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.decay == "exponential":
        return high * math.exp(math.log(low / high) * progress)
    return high


def margin_at(config: HeadConfig, step: int, updates: int) -> float:
    """Margin in radians at update `step` (from 0) of `updates`."""
    begin, end = config.margin_from * updates, config.margin_until * updates
    if step >= end:
        return config.margin
    if step <= begin:  # also where the margin grows in no time at all
        return 0.0
    return config.margin * (step - begin) / (end - begin)


def _figures(loss: Loss, grad_norm: Tensor, learning_rate: float, margin: float) -> Figures:
    alignment = loss.alignment.mean() if len(loss.alignment) else loss.total.new_zeros(())
    parts = [loss.total, loss.cross_entropy.mean(), alignment, grad_norm, 100 * loss.correct.float().mean()]
    total, cross_entropy, aligned, norm, accuracy = torch.stack([part.detach().float() for part in parts]).tolist()
    return Figures(total, cross_entropy, aligned, norm, accuracy, learning_rate, margin)


def _check_finite(figures: Figures, loss: Loss, batch: Batch, step: int) -> None:
    """Raise DivergedError if a part of the loss or the gradient is not finite."""
    parts = {"cross-entropy": figures.cross_entropy, "alignment": figures.alignment, "gradient": figures.grad_norm}
    broken = next(((name, value) for name, value in parts.items() if not math.isfinite(value)), None)
    if broken is None:
        return
    # A broken waveform spoils every row through batch normalisation, so it is named before the rows it spoiled.
    bad = ~torch.isfinite(batch.audio).all(dim=1)
    if not bad.any():
        distances = torch.zeros_like(loss.cross_entropy)
        if len(batch.originals):  # of the copies, the first rows
            distances[: len(loss.alignment)] = loss.alignment
        elif len(loss.alignment):  # of every pair
            distances = loss.alignment.repeat(2)
        bad = ~torch.isfinite(loss.cross_entropy + distances)
    names = [name for name, is_bad in zip(batch.names, bad.tolist(), strict=True) if is_bad]
    shown = "; ".join(names[:_NAMED_ROWS])
    more = f" and {len(names) - _NAMED_ROWS} more" if len(names) > _NAMED_ROWS else ""
    rows = f" for {shown}{more}" if names else ""
    raise DivergedError(f"update {step + 1}: the {broken[0]} is {broken[1]}{rows}")
