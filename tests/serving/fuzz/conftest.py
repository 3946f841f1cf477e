"""Prints what came of the examples."""

from typing import Any

from tests.serving.fuzz.running import memory_kb, outcomes


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if outcomes:
        terminalreporter.section("fuzzing: examples and what came of them")
    for test, counts in outcomes.items():
        parts = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        series = memory_kb[test]
        memory = f"{series[0] / 1024:.0f} to {series[-1] / 1024:.0f} MB"
        terminalreporter.write_line(f"{test}: {counts.total()} ({parts}); {memory}")
