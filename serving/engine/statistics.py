"""What a model has done since it was loaded: the batches it computed, and the calls of the inference protocol to it.

Lives on the event loop, like the queues that report to it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from speakerlens.serving.engine.queue import Observer


@dataclass
class Span:
    """How often something happened, and how long it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one more."""
        self.count += 1
        self.seconds += seconds


@dataclass
class Statistics:
    """Counts of one model.

    Attributes:
        batches: by batch size; all that was computed, whichever call asked for it.
        computed_at: when the last batch was finished, in seconds since the epoch; 0 before the first.
        succeeded: calls that were answered, with their whole time.
        failed: calls that were not, or were given up.
        decode: reading and checking the tensors, of the calls that were answered.
        queue: waiting for the device, of the same.
        inference: the batch on the device, of the same.
        encode: writing the tensors, of the same.
    """

    batches: dict[int, Span] = field(default_factory=dict)
    computed_at: float = 0.0
    succeeded: Span = field(default_factory=Span)
    failed: Span = field(default_factory=Span)
    decode: Span = field(default_factory=Span)
    queue: Span = field(default_factory=Span)
    inference: Span = field(default_factory=Span)
    encode: Span = field(default_factory=Span)

    @property
    def utterances(self) -> int:
        """How many were computed."""
        return sum(size * span.count for size, span in self.batches.items())

    @property
    def executions(self) -> int:
        """How many batches were computed."""
        return sum(span.count for span in self.batches.values())

    def ran(self, size: int, seconds: float) -> None:
        """A batch of `size` took `seconds` on the device."""
        self.batches.setdefault(size, Span()).add(seconds)
        self.computed_at = time.time()

    def answered(self, seconds: float, phases: Mapping[str, float]) -> None:
        """A call was answered after `seconds`, of which the phases are parts."""
        self.succeeded.add(seconds)
        for name, part in phases.items():
            getattr(self, name).add(part)


@dataclass(frozen=True)
class CountingObserver:
    """A queue's observer that also counts its batches for the model."""

    statistics: Statistics
    observer: Observer

    def waiting(self, change: int) -> None:
        """The queue grew or shrank by `change`."""
        self.observer.waiting(change)

    def ran(self, size: int, seconds: float) -> None:
        """A batch of `size` took `seconds` on the device."""
        self.statistics.ran(size, seconds)
        self.observer.ran(size, seconds)
