"""One update after the other: schedules, forward and backward, and the state that a checkpoint holds."""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from speakerlens.training.checkpoint import Checkpoint, new_checkpoint, restore_random
from speakerlens.training.compute import lay_out, uses_bfloat16
from speakerlens.training.config import Config, HeadConfig, OptimiserConfig
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.batches import Batch
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.distributed import ALONE, World
from speakerlens.training.errors import UserError
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.normalisation import synchronise_normalisation
from speakerlens.training.model.objectives import Loss, compute_loss
from speakerlens.training.variants import Variant, find_variant

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
        variant: a key of `training.variants.VARIANTS`.
        corpus: gives the speakers.
        device: where to compute.
        world: the processes that train together, each with its share of every batch; all have the same weights.

    Raises UserError if the configuration asks for what the device cannot do.
    """

    def __init__(
        self, config: Config, variant: str, corpus: Corpus, device: torch.device, world: World = ALONE
    ) -> None:
        self.config, self.device, self._world = config, device, world
        self._variant_name, self._corpus = variant, corpus
        torch.manual_seed(config.seed)
        network = SpeakerNetwork(config.network, config.head, len(corpus.speakers)).to(device).train()
        if world.size > 1:
            network = synchronise_normalisation(network, device)
        lay_out(network.encoder, config.compute, device, world)
        self.network = network
        self._optimiser = make_optimiser(network, config.optimiser)
        self._average = AveragedModel(network, use_buffers=True) if config.optimiser.average_last else None
        self._objective: nn.Module = _Objective(network, config, find_variant(variant), device, world)
        if world.size > 1:
            self._objective = DistributedDataParallel(
                self._objective,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
            self._settle()

    def _settle(self) -> None:
        """Let DistributedDataParallel lay out its buckets of gradients for good, as it does after one backward pass.

        Sums over three processes and more round by where in a bucket they stand. So a resumed run would leave the path
        of an uninterrupted one if its first update, and the other's only, had the first layout.
        """
        self.network.eval()  # which leaves the running statistics alone
        silence = torch.zeros(2, SAMPLE_RATE, device=self.device)
        with torch.compiler.set_stance("force_eager"):  # not for this shape
            loss: Loss = self._objective(silence, silence.new_zeros(2, dtype=torch.int64), silence, 0.0)
            loss.total.backward()  # type: ignore[no-untyped-call]
        self._optimiser.zero_grad()
        self.network.train()

    @property
    def result(self) -> SpeakerNetwork:
        """What the run would give if it ended now: the network, or the average of its last weights."""
        if self._average is None or not self._average.n_averaged:
            return self.network
        return cast(SpeakerNetwork, self._average.module)

    def update(self, step: int, batch: Batch) -> Figures:
        """Do update `step` (from 0) on this process's share of a batch; the figures are those of the whole.

        Raises DivergedError, with the weights still as they were before.
        """
        learning_rate = learning_rate_at(self.config.optimiser, step, self.config.updates)
        margin = margin_at(self.config.head, step, self.config.updates)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._optimiser.zero_grad()
        if self.device.type == "cuda":
            # Made on another stream, and not to be overwritten by it.
            for tensor in (batch.audio, batch.labels, batch.originals):
                tensor.record_stream(torch.cuda.current_stream(self.device))
        loss: Loss = self._objective(batch.audio, batch.labels, batch.originals, margin)
        loss.total.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimiser.clip_norm)
        figures = _figures(loss, grad_norm, learning_rate, margin, self._world)
        _check_finite(figures, loss, batch, step, self._world)
        self._optimiser.step()
        if self._average is not None and is_averaged(self.config.optimiser, step, self.config.updates):
            self._average.update_parameters(self.network)
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
            average={} if self._average is None else self._average.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back the state of a checkpoint of the same configuration."""
        self.network.load_state_dict(checkpoint["network"])
        self._optimiser.load_state_dict(checkpoint["optimiser"])
        if self._average is not None:
            self._average.load_state_dict(checkpoint["average"])
        restore_random(checkpoint)


class _Objective(nn.Module):
    """The network and its loss as one module, which is what DistributedDataParallel takes."""

    def __init__(
        self, network: SpeakerNetwork, config: Config, variant: Variant, device: torch.device, world: World
    ) -> None:
        super().__init__()
        self.network = network
        self._variant, self._config, self._world = variant, config.objective, world
        self._in_bfloat16 = uses_bfloat16(config.compute, device)

    def forward(self, audio: Tensor, labels: Tensor, originals: Tensor, margin: float) -> Loss:
        """Audio [rows, samples], labels [rows] and originals [copies, samples] -> their loss."""
        with torch.autocast(audio.device.type, torch.bfloat16, enabled=self._in_bfloat16):
            loss = compute_loss(self.network, audio, labels, originals, self._variant, self._config, margin)
        if not len(originals):
            return loss
        # One process may have more copies than another, and the mean of the processes shall be that of all copies.
        weight = len(originals) / self._world.mean(torch.tensor(float(len(originals)))).item()
        return loss._replace(total=loss.total + (weight - 1) * self._config.weight * loss.alignment.mean())


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


def is_averaged(config: OptimiserConfig, step: int, updates: int) -> bool:
    """Whether the weights after update `step` (from 0) are among those that are averaged: at least the last are."""
    return step >= min(updates - 1, round((1 - config.average_last) * updates))


def _figures(loss: Loss, grad_norm: Tensor, learning_rate: float, margin: float, world: World) -> Figures:
    copies = loss.total.new_tensor(len(loss.alignment))
    parts = [loss.total, loss.cross_entropy.mean(), 100 * loss.correct.float().mean(), loss.alignment.sum(), copies]
    means = world.mean(torch.stack([part.detach().float() for part in parts]))
    total, cross_entropy, accuracy, distance, copied, norm = torch.cat([means, grad_norm.float()[None]]).tolist()
    return Figures(total, cross_entropy, distance / max(copied, 1), norm, accuracy, learning_rate, margin)


def _check_finite(figures: Figures, loss: Loss, batch: Batch, step: int, world: World) -> None:
    """Raise DivergedError if a part of the loss or the gradient is not finite; on all processes alike."""
    parts = {
        "cross-entropy": figures.cross_entropy,
        "alignment": figures.alignment,
        "loss": figures.loss,
        "gradient": figures.grad_norm,
    }
    broken = next(((name, value) for name, value in parts.items() if not math.isfinite(value)), None)
    if broken is None:
        return
    # A broken waveform spoils every row through batch normalisation, so it is named before the rows it spoiled.
    bad = ~torch.isfinite(batch.audio).all(dim=1)
    if not world.largest(int(bad.any())):
        distances = torch.zeros_like(loss.cross_entropy)
        if len(batch.originals):  # of the copies, the first rows
            distances[: len(loss.alignment)] = loss.alignment
        elif len(loss.alignment):  # of every pair
            distances = loss.alignment.repeat(2)
        bad = ~torch.isfinite(loss.cross_entropy + distances)
    own = [name for name, is_bad in zip(batch.names, bad.tolist(), strict=True) if is_bad]
    names = [name for text in world.gather("\n".join(own)) for name in text.splitlines()]
    shown = "; ".join(names[:_NAMED_ROWS])
    more = f" and {len(names) - _NAMED_ROWS} more" if len(names) > _NAMED_ROWS else ""
    rows = f" for {shown}{more}" if names else ""
    raise DivergedError(f"update {step + 1}: the {broken[0]} is {broken[1]}{rows}")
