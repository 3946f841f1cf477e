"""The import graph of the project's modules, read from their source."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

Graph = Mapping[str, frozenset[str]]
"""Module name to the names of the project's modules that it imports."""

PARTS = ("serving", "scoring", "training", "export", "measures", "protos")


@cache
def modules() -> dict[str, Path]:
    """Return every module that is installed, by its dotted name below `speakerlens`; generated code left out."""
    found = {}
    for part in (*PARTS, "speakerlens"):
        for file in sorted((ROOT / part).rglob("*.py")):
            if file.stem.endswith(("_pb2", "_pb2_grpc")):
                continue
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name if part == "speakerlens" else f"speakerlens.{name}"] = file
    return found


def imported(file: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in it: `a.b` and `a.b.c` of `from a.b import c`."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def import_graph() -> Graph:
    """Return which of the project's modules each of them imports."""
    known = modules()
    graph = {}
    for name, file in known.items():
        targets = set(imported(file)) & known.keys()
        # `from a.b import c` names the package and the module: the module is what is meant.
        packages = {target for target in targets if known[target].name == "__init__.py"}
        inner = {package for package in packages if any(other.startswith(f"{package}.") for other in targets)}
        graph[name] = frozenset(targets - inner - {name})
    return graph


def packages(graph: Graph) -> Graph:
    """Return the same graph between packages: a module counts for its package."""
    joined: dict[str, set[str]] = {}
    for name, targets in graph.items():
        joined.setdefault(package_of(name), set()).update(map(package_of, targets))
    return {name: frozenset(targets - {name}) for name, targets in joined.items()}


def package_of(name: str) -> str:
    """Return the package that a module lies in; the files at a part's top level, such as `config`, are their own."""
    if modules()[name].name == "__init__.py":
        return name
    package = name.rpartition(".")[0]
    return name if package == "speakerlens" or package.removeprefix("speakerlens.") in PARTS else package


def cycles(graph: Graph) -> list[list[str]]:
    """Return the groups of names that import each other, each sorted (strongly connected components; Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def top_level(names: Iterable[str]) -> set[str]:
    """Return the first part of each dotted name."""
    return {name.partition(".")[0] for name in names}
