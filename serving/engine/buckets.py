"""The shapes of batches: lengths and numbers of rows are rounded up, so that a device sees few of them.

What rounding costs and gains differs by device (docs/decisions/0027-batches.md): on a CPU a new shape costs nothing and
padding is computed like audio, so steps are a few frames, rows are not rounded and batches are small; with CUDA every
new shape is searched for and allocated, and large batches pay.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Final

from speakerlens.serving.bundle import SAMPLE_RATE

DEFAULT_ROWS = 8
DEFAULT_LONGEST_SECONDS = 10.0

# Four frames of 10 ms; a window of 3 s has no padding.
CPU_STEP = SAMPLE_RATE // 25
# A CPU needs no warm-up of all shapes: a short one, the longest up to 3 s, and two rows show that a graph works.
CPU_SHORT_SAMPLES, CPU_WARM_SAMPLES = 13 * CPU_STEP, 3 * SAMPLE_RATE
CPU_BATCH_SECONDS = 10.0
CPU_PADDING = 0.15

CUDA_SECONDS = (1, 2, 3, 4, 6, 8, 10)
CUDA_STEP = 5 * SAMPLE_RATE
CUDA_BATCH_SECONDS = 120.0
# Of a row, where there are so many rows that the default would hold less.
CUDA_ROW_SECONDS = 2.0
CUDA_PADDING = 0.5
# Rows of a batch by the GiB of a GPU's memory, from which on.
CUDA_ROWS = ((96, 256), (32, 128), (0, 64))


@dataclass(frozen=True)
class BatchLimits:
    """Limits of batches that an operator sets.

    Attributes:
        rows: most utterances of a batch.
        batch_seconds: most audio of a batch of several utterances, padding included; None for the device's default.
        longest_seconds: longest utterance that is expected; longer ones are computed at shapes without warm-up.
    """

    rows: int = DEFAULT_ROWS
    batch_seconds: float | None = None
    longest_seconds: float = DEFAULT_LONGEST_SECONDS


DEFAULT_LIMITS: Final = BatchLimits()


def gpu_rows(memory_bytes: int) -> int:
    """Return the rows of a batch for a GPU with so much memory: 64 to 256."""
    return next(rows for gib, rows in CUDA_ROWS if memory_bytes >= gib * 2**30)


@dataclass(frozen=True)
class Buckets:
    """The shapes of batches on one device.

    Attributes:
        lengths: in samples, ascending; longer audio is rounded up to a multiple of `step`.
        sizes: numbers of rows, ascending; the last is the maximum.
        batch_samples: maximum of samples of a batch of several rows, padding included.
        padding: maximum of padding of a batch of several rows, as a share of its samples.
        warm: shapes to compute before serving, as (rows, samples).
    """

    lengths: tuple[int, ...]
    step: int
    sizes: tuple[int, ...]
    batch_samples: int
    padding: float
    warm: tuple[tuple[int, int], ...]

    @property
    def profile(self) -> dict[str, tuple[int, int]]:
        """Return the smallest (`min`), largest (`max`) and most usual (`opt`) shape, as (rows, samples)."""
        usual = max(self.warm, key=lambda shape: (shape[0] * shape[1], shape[0]))
        return {"min": (1, self.lengths[0]), "opt": usual, "max": (self.sizes[-1], self.lengths[-1])}

    def within(self, samples: int) -> "Buckets":
        """Return the same with at most so many samples in a batch of several rows."""
        warm = tuple(shape for shape in self.warm if shape[0] == 1 or shape[0] * shape[1] <= samples)
        return replace(self, batch_samples=samples, warm=warm)

    def length(self, samples: int) -> int:
        """Return the number of samples to which audio of `samples` samples is padded."""
        if samples > self.lengths[-1]:
            return -(-samples // self.step) * self.step
        return self.lengths[bisect_left(self.lengths, samples)]

    def rows(self, count: int) -> int:
        """Return the number of rows to which a batch of `count` jobs, at most the last of `sizes`, is filled up."""
        return self.sizes[bisect_left(self.sizes, count)]


def cpu_buckets(limits: BatchLimits) -> Buckets:
    """Return lengths in steps of 40 ms and any number of rows; few shapes are warm."""
    longest = max(CPU_SHORT_SAMPLES, round(limits.longest_seconds * SAMPLE_RATE))
    lengths = tuple(range(CPU_STEP, longest + CPU_STEP, CPU_STEP))
    batch_samples = _samples(limits, CPU_BATCH_SECONDS)
    warm = {(min(limits.rows, max(1, batch_samples // CPU_SHORT_SAMPLES), 2), CPU_SHORT_SAMPLES)}
    warm |= {(1, CPU_SHORT_SAMPLES), (1, max(length for length in lengths if length <= CPU_WARM_SAMPLES))}
    return Buckets(
        lengths=lengths,
        step=CPU_STEP,
        sizes=tuple(range(1, limits.rows + 1)),
        batch_samples=batch_samples,
        padding=CPU_PADDING,
        warm=tuple(sorted(warm)),
    )


def cuda_buckets(limits: BatchLimits) -> Buckets:
    """Return about seven lengths and powers of two of rows; every shape within the limits is warm."""
    longest = max(1.0, limits.longest_seconds)
    lengths = [second * SAMPLE_RATE for second in CUDA_SECONDS]
    while lengths[-1] < longest * SAMPLE_RATE:
        lengths.append(lengths[-1] + CUDA_STEP)
    shorter = [length for length in lengths if length < longest * SAMPLE_RATE]
    lengths = lengths[: len(shorter) + 1]
    sizes = [2**power for power in range(limits.rows.bit_length()) if 2**power < limits.rows]
    sizes.append(limits.rows)
    batch_samples = _samples(limits, max(CUDA_BATCH_SECONDS, CUDA_ROW_SECONDS * limits.rows))
    return Buckets(
        lengths=tuple(lengths),
        step=CUDA_STEP,
        sizes=tuple(sizes),
        batch_samples=batch_samples,
        padding=CUDA_PADDING,
        # The largest first: their memory is allocated once, and the others fit into it.
        warm=tuple(
            (rows, length)
            for rows in reversed(sizes)
            for length in reversed(lengths)
            if rows == 1 or rows * length <= batch_samples
        ),
    )


def _samples(limits: BatchLimits, default_seconds: float) -> int:
    return round((limits.batch_seconds or default_seconds) * SAMPLE_RATE)
