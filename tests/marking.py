"""Which tests start processes, found by looking at the code that a test and its fixtures refer to."""

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType

import pytest

# Code that refers to one of these starts a process.
STARTERS = frozenset(
    {
        "ServerProcess",
        "subprocess",
        "create_subprocess_exec",
        "SpawnProcess",
        "ProcessPoolExecutor",
        "PrometheusProcess",
        "Postgres",
    }
)


def mark(item: pytest.Item) -> None:
    """Mark a test `process` if it or one of its fixtures starts a process, else `unit`."""
    if not any(item.iter_markers("process")):  # which a test says itself where only the product starts one
        item.add_marker("process" if starts_process(item) else "unit")


def starts_process(item: pytest.Item) -> bool:
    """Return whether a test or one of its fixtures refers to code of the tests that starts a process."""
    if not isinstance(item, pytest.Function):
        return False
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(definition.func for definitions in fixtures for definition in definitions)]
    return any(_starts(function, set()) for function in functions)


def _starts(thing: object, seen: set[int]) -> bool:
    """Follow the names that code refers to, as far as they are functions and classes of the tests."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    if id(thing) in seen:
        return False
    seen.add(id(thing))
    if isinstance(thing, type):
        return any(_starts(each, seen) for each in vars(thing).values() if isinstance(each, FunctionType))
    if not isinstance(thing, FunctionType):
        return False
    names = frozenset(_names(thing.__code__))
    if names & STARTERS:
        return True
    found = [thing.__globals__[name] for name in names if name in thing.__globals__]
    return any(_starts(each, seen) for each in found if str(getattr(each, "__module__", "")).startswith("tests"))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
