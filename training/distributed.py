"""One run on several processes, started by torchrun; each has a share of every batch.

State is exchanged between CPUs (gloo), so that it does not wait for a GPU; gradients, statistics of normalisation and
figures of the loss are exchanged between devices.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from speakerlens.training.errors import UserError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """The processes that train together. All must call the methods in the same order.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        local_rank: of this process on its machine, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def together(self, action: Callable[[], Result]) -> Result:
        """Return the result of `action`, which every process runs; raise on all if it fails on any.

        Raises:
            UserError: it failed; all processes raise the message of the first that failed.
            Exception: what `action` raised on this process, unless a UserError.
        """
        return self.agree(action, 0)[0]

    def agree(self, action: Callable[[], Result], number: int) -> tuple[Result, int]:
        """Do as `together`, and return the largest `number` of all processes too."""
        if self.size == 1:
            return action(), number
        results, error = [], None
        try:
            results.append(action())
        except Exception as caught:  # noqa: BLE001 - reported to the other processes
            error = caught
        failed, largest = self._largest(int(error is not None), number)
        if failed:
            messages = self.gather("" if error is None else str(error) or type(error).__name__)
            if error is not None and not isinstance(error, UserError):
                raise error
            rank, message = next((rank, message) for rank, message in enumerate(messages) if message)
            raise UserError(message if rank == 0 else f"process {rank}: {message}") from error
        return results[0], largest

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        return self._largest(number)[0] if self.size > 1 else number

    def _largest(self, *numbers: int) -> list[int]:
        tensor = torch.tensor(numbers)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        found: list[int] = tensor.tolist()
        return found

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of the processes' tensors, which have one shape."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, text: str) -> list[str]:
        """Return every process's text, by rank."""
        if self.size == 1:
            return [text]
        return [self._broadcast(text.encode(), rank).decode() for rank in range(self.size)]

    def share(self, content: Any) -> Any:
        """Return the first process's `content` (tensors and plain values) on all; the others' is ignored."""
        if self.size == 1:
            return content
        buffer = io.BytesIO()
        if self.leads:
            torch.save(content, buffer)
        received = self._broadcast(buffer.getvalue(), 0)
        return content if self.leads else torch.load(io.BytesIO(received), map_location="cpu", weights_only=True)

    def _broadcast(self, content: bytes, source: int) -> bytes:
        """Return `content` of process `source`."""
        size = torch.tensor(len(content))
        dist.broadcast(size, source)
        if not size:
            return b""
        if self.rank == source:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        else:
            buffer = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(buffer, source)
        return buffer.numpy().tobytes()


ALONE = World()


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the processes started by torchrun, if any; yield the world and this process's device.

    Raises:
        UserError: there are more processes than GPUs, or the others cannot be reached.
    """
    given = {name: os.environ.get(name) for name in _VARIABLES}
    if None in given.values() or given["WORLD_SIZE"] == "1":
        yield ALONE, device
        return
    world = World(*(int(given[name] or 0) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    backend = "gloo"
    if device.type == "cuda":
        if world.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started more processes on this machine than it has GPUs ({torch.cuda.device_count()}); "
                "--nproc-per-node must not exceed that"
            )
        device, backend = torch.device("cuda", world.local_rank), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"process {world.rank} cannot join the other {world.size - 1} ({error})") from error
    yield world, device
    # Not after an exception on this process alone: destroying the group might wait for the others forever.
    dist.destroy_process_group()
