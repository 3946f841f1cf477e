"""Run networks on batches while the next batches are made: on every core of a CPU, or on one GPU."""

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
"""Networks by name, all in evaluation mode, on one device and with the same front end."""

Advance = Callable[[], None]

Item = TypeVar("Item")


def device_and_front_end(networks: Networks) -> tuple[torch.device, LogMel]:
    """Return the device and the front end that all networks share."""
    network = next(iter(networks.values()))
    return next(network.parameters()).device, network.front_end


def batch_size(device: torch.device) -> int:
    """Return how many utterances of a few seconds go through a network together."""
    return _BATCH_CUDA if device.type == "cuda" else _BATCH_CPU


def for_each(items: Iterable[Item], work: Callable[[Item], None], device: torch.device, advance: Advance) -> None:
    """Call `work` on every item while the next ones are made; `advance` is called after each.

    On a CPU each core works on its own item: with small networks, cores that share one batch wait for each other at
    every operator and lose half of their time, more on a busy machine.
    """
    threads = torch.get_num_threads()
    workers = 1 if device.type == "cuda" else threads
    if workers > 1:
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            running: deque[Future[None]] = deque()
            for item in items:
                running.append(pool.submit(work, item))
                while len(running) > 2 * workers:
                    running.popleft().result()
                    advance()
            for future in running:
                future.result()
                advance()
    finally:
        torch.set_num_threads(threads)
