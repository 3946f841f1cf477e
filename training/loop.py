"""The update: schedules, forward and backward pass, optimiser step, and the state in a checkpoint."""

import math
from dataclasses import asdict
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from speakerlens.training.checkpoint import Checkpoint, new_checkpoint, restore_random
from speakerlens.training.compute import prepare_encoder, uses_bfloat16
from speakerlens.training.config import Config, OptimiserConfig
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.batches import Batch
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.distributed import ALONE, World
from speakerlens.training.errors import UserError
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.normalisation import synchronise_normalisation
from speakerlens.training.model.objectives import Loss, compute_loss
from speakerlens.training.schedule import Progress, Schedule
from speakerlens.training.variants import Variant, find_variant

_NAMED_ROWS = 3


class DivergedError(UserError):
    """The loss or its gradient is NaN or infinite; the message names the update, the part and the utterances."""


class Figures(NamedTuple):
    """The logged figures of an update; `accuracy` in percent over its rows, without margin."""

    loss: float
    cross_entropy: float
    alignment: float
    grad_norm: float
    accuracy: float
    learning_rate: float
    margin: float


class Trainer:
    """A network in training, with its optimiser, averaged weights and schedule.

    Args:
        config: the run's configuration; its seed makes the initial weights.
        variant: a key of `training.variants.VARIANTS`.
        corpus: gives the speakers.
        device: where to compute.
        world: the processes that train together, each with its share of every batch; all have the same weights.

    Raises:
        UserError: the device does not support the configuration.
    """

    def __init__(
        self, config: Config, variant: str, corpus: Corpus, device: torch.device, world: World = ALONE
    ) -> None:
        self.config, self.device, self._world = config, device, world
        self.schedule = Schedule(config)
        self._variant_name, self._corpus = variant, corpus
        torch.manual_seed(config.seed)
        network = SpeakerNetwork(config.network, config.head, len(corpus.speakers)).to(device).train()
        if world.size > 1:
            network = synchronise_normalisation(network, device)
        prepare_encoder(network.encoder, config.compute, device, world)
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
        """Run one backward pass, after which DistributedDataParallel's gradient buckets keep their layout.

        Over three or more processes, rounding of a sum depends on the position in a bucket. Without this pass the first
        update of a resumed run would use another layout than the same update of an uninterrupted run.
        """
        self.network.eval()  # keeps the running statistics
        silence = torch.zeros(2, SAMPLE_RATE, device=self.device)
        with torch.compiler.set_stance("force_eager"):  # do not compile for this shape
            loss: Loss = self._objective(silence, silence.new_zeros(2, dtype=torch.int64), silence, 0.0)
            loss.total.backward()  # type: ignore[no-untyped-call]
        self._optimiser.zero_grad()
        self.network.train()

    @property
    def result(self) -> SpeakerNetwork:
        """The result of the run so far: the network, or the average of its last weights."""
        if self._average is None or not self._average.n_averaged:
            return self.network
        return cast(SpeakerNetwork, self._average.module)

    def update(self, step: int, batch: Batch) -> Figures:
        """Do update `step` (from 0) on this process's share of a batch; return the figures of the whole batch.

        Raises:
            DivergedError: the loss or gradient is not finite; the weights are unchanged.
        """
        learning_rate, margin = self.schedule.learning_rate(step), self.schedule.margin(step)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._optimiser.zero_grad()
        if self.device.type == "cuda":
            # Made on another stream, which must not reuse their memory yet.
            for tensor in (batch.audio, batch.labels, batch.originals):
                tensor.record_stream(torch.cuda.current_stream(self.device))
        loss: Loss = self._objective(batch.audio, batch.labels, batch.originals, margin)
        loss.total.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimiser.clip_norm)
        figures = _figures(loss, grad_norm, learning_rate, margin, self._world)
        _check_finite(figures, loss, batch, step, self._world)
        self._optimiser.step()
        if self._average is not None and self.schedule.is_averaged(step):
            self._average.update_parameters(self.network)
        return figures

    def checkpoint(self, step: int) -> Checkpoint:
        """Return the state after `step` updates."""
        saved = new_checkpoint(
            step=step,
            variant=self._variant_name,
            config=self.config,
            corpus=self._corpus,
            network=self.network.state_dict(),
            optimiser=self._optimiser.state_dict(),
            average={} if self._average is None else self._average.state_dict(),
        )
        saved["progress"] = asdict(self.schedule.progress)
        return saved

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint of the same configuration."""
        self.network.load_state_dict(checkpoint["network"])
        self._optimiser.load_state_dict(checkpoint["optimiser"])
        if self._average is not None:
            self._average.load_state_dict(checkpoint["average"])
        self.schedule = Schedule(self.config, Progress(**checkpoint["progress"]))
        restore_random(checkpoint)


class _Objective(nn.Module):
    """The network and its loss as one module, as DistributedDataParallel requires."""

    def __init__(
        self, network: SpeakerNetwork, config: Config, variant: Variant, device: torch.device, world: World
    ) -> None:
        super().__init__()
        self.network = network
        self._variant, self._config, self._world = variant, config.objective, world
        self._in_bfloat16 = uses_bfloat16(config.compute, device)

    def forward(self, audio: Tensor, labels: Tensor, originals: Tensor, margin: float) -> Loss:
        """Return the loss of audio [rows, samples], labels [rows], originals [copies, samples]; margin in radians."""
        with torch.autocast(audio.device.type, torch.bfloat16, enabled=self._in_bfloat16):
            loss = compute_loss(self.network, audio, labels, originals, self._variant, self._config, margin)
        if not len(originals):
            return loss
        # Processes may have different numbers of copies; their mean must be the mean over all copies.
        weight = len(originals) / self._world.mean(torch.tensor(float(len(originals)))).item()
        return loss._replace(total=loss.total + (weight - 1) * self._config.weight * loss.alignment.mean())


def make_optimiser(network: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Return the configured optimiser, with weight decay on matrices and kernels only."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.kind == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999))


def _figures(loss: Loss, grad_norm: Tensor, learning_rate: float, margin: float, world: World) -> Figures:
    copies = loss.total.new_tensor(len(loss.alignment))
    parts = [loss.total, loss.cross_entropy.mean(), 100 * loss.correct.float().mean(), loss.alignment.sum(), copies]
    means = world.mean(torch.stack([part.detach().float() for part in parts]))
    total, cross_entropy, accuracy, distance, copied, norm = torch.cat([means, grad_norm.float()[None]]).tolist()
    return Figures(total, cross_entropy, distance / max(copied, 1), norm, accuracy, learning_rate, margin)


def _check_finite(figures: Figures, loss: Loss, batch: Batch, step: int, world: World) -> None:
    """Raise DivergedError on all processes if a part of the loss or the gradient is not finite."""
    parts = {
        "cross-entropy": figures.cross_entropy,
        "alignment": figures.alignment,
        "loss": figures.loss,
        "gradient": figures.grad_norm,
    }
    broken = next(((name, value) for name, value in parts.items() if not math.isfinite(value)), None)
    if broken is None:
        return
    # Through batch normalisation one broken waveform makes every row NaN, so waveforms are checked before losses.
    bad = ~torch.isfinite(batch.audio).all(dim=1)
    if not world.largest(int(bad.any())):
        distances = torch.zeros_like(loss.cross_entropy)
        if len(batch.originals):  # copies are the first rows
            distances[: len(loss.alignment)] = loss.alignment
        elif len(loss.alignment):  # pairs: copies and originals
            distances = loss.alignment.repeat(2)
        bad = ~torch.isfinite(loss.cross_entropy + distances)
    own = [name for name, is_bad in zip(batch.names, bad.tolist(), strict=True) if is_bad]
    names = [name for text in world.gather("\n".join(own)) for name in text.splitlines()]
    shown = "; ".join(names[:_NAMED_ROWS])
    more = f" and {len(names) - _NAMED_ROWS} more" if len(names) > _NAMED_ROWS else ""
    rows = f" for {shown}{more}" if names else ""
    raise DivergedError(f"update {step + 1}: the {broken[0]} is {broken[1]}{rows}")
