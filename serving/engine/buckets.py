"""Which shapes of batches a device sees: lengths and numbers of rows are rounded up, so that there are few of them.

The graph's `lengths` input makes what is added invisible. What rounding costs and gains differs by device
(docs/decisions/0027-batches.md): on a CPU a new shape costs nothing and padding is computed like audio, so steps are
fine, rows are not rounded and batches are small; with CUDA every new shape is searched for and allocated, and large
batches pay.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

from speakerlens.serving.bundle import SAMPLE_RATE

DEFAULT_ROWS = 8
DEFAULT_LONGEST_SECONDS = 10.0

CPU_STEP = SAMPLE_RATE // 2
# Beyond three seconds, warming up on a CPU tells nothing new.
CPU_WARM_SAMPLES = 3 * SAMPLE_RATE
CPU_BATCH_SECONDS = 10.0
CPU_PADDING = 0.15

CUDA_SECONDS = (1, 2, 3, 4, 6, 8, 10)
CUDA_STEP = 5 * SAMPLE_RATE
CUDA_BATCH_SECONDS = 120.0
CUDA_PADDING = 0.5


@dataclass(frozen=True)
class Limits:
    """What an operator sets of batches; `batch_seconds` None is the device's own default.

    `rows` is the most utterances together, `batch_seconds` the most audio together with its padding, and
    `longest_seconds` the longest utterance that is expected: longer ones work, at shapes that were not warmed.
    """

    rows: int = DEFAULT_ROWS
    batch_seconds: float | None = None
    longest_seconds: float = DEFAULT_LONGEST_SECONDS


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class Buckets:
    """The shapes of one device.

    Attributes:
        lengths: in samples, ascending; longer audio is rounded up to a multiple of `step`.
        sizes: numbers of rows, ascending; the last is the most.
        batch_samples: the most samples of a batch of several rows, padding included.
        padding: the most padding of a batch of several rows, as a share of its samples.
        warm: shapes to run before serving, as (rows, samples).
    """

    lengths: tuple[int, ...]
    step: int
    sizes: tuple[int, ...]
    batch_samples: int
    padding: float
    warm: tuple[tuple[int, int], ...]

    def length(self, samples: int) -> int:
        """The length to which audio is padded."""
        if samples > self.lengths[-1]:
            return -(-samples // self.step) * self.step
        return self.lengths[bisect_left(self.lengths, samples)]

    def rows(self, count: int) -> int:
        """The number of rows to which a batch of at most the last of `sizes` is filled up."""
        return self.sizes[bisect_left(self.sizes, count)]


def cpu_buckets(limits: Limits) -> Buckets:
    """Steps of half a second and any number of rows; warmed up at every length up to 3 s, and once together."""
    longest = max(CPU_STEP, round(limits.longest_seconds * SAMPLE_RATE))
    lengths = tuple(range(CPU_STEP, longest + CPU_STEP, CPU_STEP))
    batch_samples = _samples(limits, CPU_BATCH_SECONDS)
    warm = [(1, length) for length in lengths if length <= CPU_WARM_SAMPLES]
    together = min(limits.rows, max(1, batch_samples // lengths[0]))
    return Buckets(
        lengths=lengths,
        step=CPU_STEP,
        sizes=tuple(range(1, limits.rows + 1)),
        batch_samples=batch_samples,
        padding=CPU_PADDING,
        warm=(*warm, (together, lengths[0])),
    )


def cuda_buckets(limits: Limits) -> Buckets:
    """Some seven lengths, and powers of two of rows; every shape within the limits is warmed up."""
    longest = max(1.0, limits.longest_seconds)
    lengths = [second * SAMPLE_RATE for second in CUDA_SECONDS]
    while lengths[-1] < longest * SAMPLE_RATE:
        lengths.append(lengths[-1] + CUDA_STEP)
    shorter = [length for length in lengths if length < longest * SAMPLE_RATE]
    lengths = lengths[: len(shorter) + 1]
    sizes = [2**power for power in range(limits.rows.bit_length()) if 2**power < limits.rows]
    sizes.append(limits.rows)
    batch_samples = _samples(limits, CUDA_BATCH_SECONDS)
    return Buckets(
        lengths=tuple(lengths),
        step=CUDA_STEP,
        sizes=tuple(sizes),
        batch_samples=batch_samples,
        padding=CUDA_PADDING,
        # The largest first: what they need is allocated once, and the others find room in it.
        warm=tuple(
            (rows, length)
            for rows in reversed(sizes)
            for length in reversed(lengths)
            if rows == 1 or rows * length <= batch_samples
        ),
    )


def _samples(limits: Limits, default_seconds: float) -> int:
    return round((limits.batch_seconds or default_seconds) * SAMPLE_RATE)
