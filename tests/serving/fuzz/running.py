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
# What a process may hold more in the second half of a test's examples than in the first, which fills caches and arenas.
GROWTH_KB = 32 * 1024

# What came of the examples, and the resident memory after each, by test; printed when all is over.
outcomes: dict[str, Counter[str]] = {}
memory_kb: dict[str, list[int]] = {}


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


def note(test: str, outcome: str, resident: int) -> None:
    """Counts an example, and the memory of the process after it, in kB."""
    outcomes.setdefault(test, Counter())[outcome] += 1
    memory_kb.setdefault(test, []).append(resident)


def resident_kb(process: int | str) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ProcessLookupError(process)


def growth_kb(test: str) -> int:
    """How much more memory was held in the second half of a test's examples than in the first."""
    series = memory_kb[test]
    half = len(series) // 2
    return max(series[half:]) - max(series[: half + 1])


def assert_flat(prefix: str) -> None:
    """No test with this prefix made its process grow."""
    tests = [test for test in memory_kb if test.startswith(prefix)]
    assert tests, "nothing was tried"
    for test in tests:
        assert growth_kb(test) < GROWTH_KB, f"{test}: {growth_kb(test) / 1024:.0f} MB more in the second half"
