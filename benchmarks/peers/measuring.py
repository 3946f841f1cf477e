"""Interleaved measurements, and what is quoted of them: medians, ratios, exponents, and whether they were disturbed."""

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.processes import machine_seconds, processor_seconds

# A cell is marked where other processes took more than this share of the machine's cores meanwhile.
DISTURBED_SHARE = 0.05


@dataclass(frozen=True)
class Sample:
    """Seconds of one call: on the clock, and of processors."""

    wall: float
    cpu: float


def ratio(samples: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median over rounds of a figure over the reference's figure in the same round."""
    return statistics.median(one / other for one, other in zip(samples, reference, strict=True))


def spread(values: Sequence[float]) -> float:
    """Return the distance of the quartiles over the median; 0 for fewer than three values."""
    if len(values) < 3:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return k of the least squares fit cost = c * size^k, in logarithms.

    1 is a cost that grows with the size, 0 one that does not depend on it.
    """
    x, y = [math.log(each) for each in sizes], [math.log(each) for each in costs]
    centre, height = statistics.fmean(x), statistics.fmean(y)
    rise = sum((one - centre) * (other - height) for one, other in zip(x, y, strict=True))
    return rise / sum((each - centre) ** 2 for each in x)


def summary(rounds: Mapping[str, Sequence[Sample]], reference: str) -> dict[str, dict[str, float]]:
    """Return medians in milliseconds, the ratio of processor times to the reference, and their spread, by way."""
    base = [each.cpu for each in rounds[reference]]
    found = {}
    for name, samples in rounds.items():
        cpu, wall = [each.cpu for each in samples], [each.wall for each in samples]
        found[name] = {
            "cpu_ms": _digits(1e3 * statistics.median(cpu)),
            "wall_ms": _digits(1e3 * statistics.median(wall)),
            "ratio": _digits(ratio(cpu, base)),
            "spread": _digits(spread(cpu)),
        }
    return found


LEAST_ROUNDS = 2


def interleave(ways: Mapping[str, Callable[[], Sample]], rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """Return the samples of each way.

    They take turns, forwards and backwards, so that other work on the machine affects all alike. After `seconds` no
    further round begins, but for the first LEAST_ROUNDS.
    """
    found: dict[str, list[Sample]] = {name: [] for name in ways}
    spent = 0.0
    for index in range(rounds):
        if index >= LEAST_ROUNDS and spent > seconds:
            break
        for name in list(ways)[:: 1 if index % 2 else -1]:
            sample = ways[name]()
            found[name].append(sample)
            spent += sample.wall
    return found


class Others:
    """A context that measures what other processes take of the machine: `share` of its cores, 0 to 1."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.share = 0.0

    def __enter__(self) -> "Others":
        self._begun = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        wall, machine, own = (end - begin for end, begin in zip(self._now(), self._begun, strict=True))
        self.share = others_share(wall, machine, own, os.cpu_count() or 1)

    def _now(self) -> tuple[float, float, float]:
        return self._clock(), machine_seconds(), processor_seconds(os.getpid())

    def marks(self) -> dict[str, Any]:
        """Return the share and the mark, for the record of a cell."""
        return {"others": round(self.share, 3), "disturbed": self.share > DISTURBED_SHARE}


def others_share(wall: float, machine: float, own: float, cores: int) -> float:
    """Return the share of the cores' time that others took, of all processor seconds and those of this program."""
    return min(1.0, max(0.0, (machine - own) / (wall * cores))) if wall > 0 else 0.0


def _digits(value: float) -> float:
    """Return four significant digits."""
    return float(f"{value:.4g}")
