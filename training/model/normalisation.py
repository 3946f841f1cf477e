"""Batch normalisation over the whole batch of all processes.

Ioffe and Szegedy (ICML 2015) normalise by the batch's mean and variance. With the statistics of each process's share,
several processes would train another network than one process does.
"""

from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def synchronise_normalisation(network: Network, device: torch.device) -> Network:
    """Make a network's batch normalisation use all processes' rows; parameter names are unchanged."""
    if device.type == "cuda":
        return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(network))  # type: ignore[no-untyped-call]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _SyncBatchNorm2d  # same parameters and buffers, another forward
    return network


class _SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.SyncBatchNorm` for CPUs, which it does not support."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [rows, channels, mel, frames]."""
        if not self.training:
            return super().forward(x)
        # In float32 and in two passes: the difference of two large sums would cancel.
        values = x.float()
        count = values.new_tensor([x.numel() / x.shape[1]])
        sums = _sum_of_all(torch.cat([values.mean(dim=(0, 2, 3)) * count, count]))
        mean, total = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean[:, None, None]
        variance = _sum_of_all(centred.square().mean(dim=(0, 2, 3)) * count / total)
        self._track(mean.detach(), variance.detach(), total)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics; their variance is unbiased."""
        running = cast(list[Tensor], [self.running_mean, self.running_var, self.num_batches_tracked])
        running[0].lerp_(mean, cast(float, self.momentum))
        running[1].lerp_(variance * count / (count - 1), cast(float, self.momentum))
        running[2].add_(1)


class _SumOfAll(torch.autograd.Function):
    """The sum over processes; its gradient is summed too, as every process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _sum_of_all(x: Tensor) -> Tensor:
    total: Tensor = _SumOfAll.apply(x)  # type: ignore[no-untyped-call]
    return total
