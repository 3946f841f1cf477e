"""How much is tried, what came of it, and how much memory it took.

FUZZ_EXAMPLES is the number of examples of each test; given, they are other ones at every run, and else the same.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

USUAL_EXAMPLES = 120
# Above what a process holds after the first third of its examples, when its caches and arenas are filled.
GROWTH_KB = 32 * 1024

# What came of the examples, by test; printed when all is over.
outcomes: dict[str, Counter[str]] = {}


def fuzz(test: Callable[..., Any]) -> Callable[..., Any]:
    """A hypothesis test with the budget of this run."""
    given = os.environ.get("FUZZ_EXAMPLES")
    return settings(
        max_examples=int(given or USUAL_EXAMPLES),
        derandomize=given is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )(test)


def note(test: str, outcome: str) -> None:
    """Counts an example."""
    outcomes.setdefault(test, Counter())[outcome] += 1


def resident_kb(process: int | str) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ProcessLookupError(process)


def assert_flat(memory_kb: list[int]) -> None:
    """Memory noted example by example does not grow once a third of them are over."""
    third = len(memory_kb) // 3
    assert third, "nothing was tried"
    growth = max(memory_kb[third:]) - max(memory_kb[: third + 1])
    assert growth < GROWTH_KB, f"{growth / 1024:.0f} MB more after {len(memory_kb)} examples than after {third}"
