"""Work done on batches while the next ones are made: on every core of a CPU, or on one accelerator."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from speakerlens.training.model.front_end import LogMel
from speakerlens.training.model.network import SpeakerNetwork

_BATCH_CPU = 4  # utterances; more do not fit a core's cache
_BATCH_CUDA = 64

Networks = Mapping[str, SpeakerNetwork]
"""By name; all on one device, in evaluation mode, and with the same front end."""

Advance = Callable[[], None]

Item = TypeVar("Item")


def common(networks: Networks) -> tuple[torch.device, LogMel]:
    """Give the device and the front end that all networks share."""
    network = next(iter(networks.values()))
    return next(network.parameters()).device, network.front_end


def batch_size(device: torch.device) -> int:
    """How many utterances of a few seconds go through a network together."""
    return _BATCH_CUDA if device.type == "cuda" else _BATCH_CPU


def for_each(made: Iterable[Item], work: Callable[[Item], None], device: torch.device, advance: Advance) -> None:
    """Do the work on every item while the next ones are made; `advance` is called after each.

    On a CPU each core works at an item of its own: the small networks here lose half of their time if all cores share
    one batch, and far more on a busy machine, because they wait for each other at every operator.
    """
    threads = torch.get_num_threads()
    workers = 1 if device.type == "cuda" else threads
    if workers > 1:
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            running: deque[Future[None]] = deque()
            for item in made:
                running.append(pool.submit(work, item))
                while len(running) > 2 * workers:
                    running.popleft().result()
                    advance()
            for future in running:
                future.result()
                advance()
    finally:
        torch.set_num_threads(threads)
