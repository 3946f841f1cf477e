"""Counts of a model since it was loaded: its batches, and its calls by the Open Inference Protocol.

Must be used on the event loop, like the batchers that report to it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from speakerlens.serving.engine.queue import Observer


@dataclass
class Timing:
    """Number of events and their seconds in total."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more event."""
        self.count += 1
        self.seconds += seconds


@dataclass
class Statistics:
    """Counts of one model.

    Attributes:
        batches: by batch size; of all APIs and background work.
        computed_at: end of the last batch in seconds since the epoch; 0 before the first.
        succeeded: calls that were answered, with their total time.
        failed: calls that failed or were cancelled.
        decode: reading and checking the tensors of the answered calls.
        queue: waiting for the device, of the same calls.
        inference: the batch on the device, of the same calls.
        encode: writing the tensors, of the same calls.
    """

    batches: dict[int, Timing] = field(default_factory=dict)
    computed_at: float = 0.0
    succeeded: Timing = field(default_factory=Timing)
    failed: Timing = field(default_factory=Timing)
    decode: Timing = field(default_factory=Timing)
    queue: Timing = field(default_factory=Timing)
    inference: Timing = field(default_factory=Timing)
    encode: Timing = field(default_factory=Timing)

    @property
    def utterances(self) -> int:
        """Number of computed utterances."""
        return sum(size * span.count for size, span in self.batches.items())

    @property
    def executions(self) -> int:
        """Number of computed batches."""
        return sum(span.count for span in self.batches.values())

    def record_batch(self, size: int, seconds: float) -> None:
        """Record that a batch of `size` jobs took `seconds` on the device."""
        self.batches.setdefault(size, Timing()).add(seconds)
        self.computed_at = time.time()

    def record_answer(self, seconds: float, phases: Mapping[str, float]) -> None:
        """Record an answered call of `seconds` in total, of which the phases take a part by name."""
        self.succeeded.add(seconds)
        for name, part in phases.items():
            getattr(self, name).add(part)


@dataclass(frozen=True)
class CountingObserver:
    """A batcher's observer that also counts its batches for the model."""

    statistics: Statistics
    observer: Observer

    def record_waiting(self, change: int) -> None:
        """Record that the queue grew by `change` jobs, or shrank if negative."""
        self.observer.record_waiting(change)

    def record_batch(self, size: int, seconds: float) -> None:
        """Record that a batch of `size` jobs took `seconds` on the device."""
        self.statistics.record_batch(size, seconds)
        self.observer.record_batch(size, seconds)
