"""The tables of the results, in Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

Cell = Mapping[str, Any]
MARK = " †"
TITLES = {
    "explaining": "1. Explaining a batch of utterances of 3 s",
    "serving": "2. Serving utterances of 3 s, callers who wait for their answers",
    "growth": "3. Growth",
    "training": "4. Training",
    "archive": "5. Scoring an archive",
}
ABOUT = {
    "explaining": "Processor time of a call in ms; in brackets, the ratio to ours with the maps of S1 to S4.",
    "serving": "`explain` returns the raw maps of S1 to S4, `fused` what people use: ours the fused map in uint8, the "
    "others the raw maps of S2 to S4, which their client would fuse. `ratio`: speed over ours in the same rounds.",
    "growth": "Costs are the server's. An exponent of 1 is a cost in proportion, 0 one that does not grow.",
    "training": "Utterances a second, and per second of processor time.",
    "archive": "Recordings per second of processor time.",
}


def page(machine: str, versions: Mapping[str, str], cells: Mapping[str, Cell]) -> str:
    """Return the page of all cells."""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [f"# Benchmarks on {machine}", "", f"{packages}. Medians of interleaved rounds."]
    lines += [
        f"{MARK.strip()}: disturbed: other processes took more than 5 % of the cores; compare ratios only.",
        "",
    ]
    for table, title in TITLES.items():
        chosen = {name.partition("/")[2]: cell for name, cell in cells.items() if name.startswith(f"{table}/")}
        if chosen:
            lines += [f"## {title}", "", ABOUT[table], "", *_TABLES[table](chosen), ""]
    skipped = {
        f"{way}: {reason}" for cell in cells.values() for way, reason in cell.get("skipped", {}).items()
    }  # fmt: skip
    if skipped:
        lines += ["## Skipped", "", *(f"- {each}" for each in sorted(skipped)), ""]
    return "\n".join(lines)


def _explaining(cells: Mapping[str, Cell]) -> Iterator[str]:
    names = list(dict.fromkeys(way for cell in cells.values() for way in cell["ways"]))
    yield from _head("network, batch, threads", *names)
    for name, cell in cells.items():
        row = []
        for way in names:
            figures = cell["ways"].get(way)
            row.append("–" if figures is None else f"{figures['cpu_ms']:g} ({figures['ratio']:.2f})")
        yield _row(name.replace("/", ", ") + _mark(cell), *row)
    errors = [
        (way, figures["error"])
        for cell in cells.values()
        for way, figures in cell["ways"].items()
        if figures.get("error", 0.0) > 1e-3
    ]
    if errors:
        worst = {way: max(error for other, error in errors if other == way) for way, _ in errors}
        yield ""
        yield "Maps that differ: " + ", ".join(f"{way} {error:.1g}" for way, error in worst.items()) + "."


def _serving(cells: Mapping[str, Cell]) -> Iterator[str]:
    yield from _head("network, kind", "callers", "server", "per s", "ratio", "p50 ms", "p99 ms", "processor ms")
    for name, cell in cells.items():
        for callers, found in cell["callers"].items():
            for server, figures in found["servers"].items():
                place = name.replace("/", ", ") + _mark(found), callers, server
                if "per_s" not in figures:
                    yield _row(*place, "; ".join(figures["errors"]))
                    continue
                ratio = f"{figures['speed_ratio']:.2f}" if "speed_ratio" in figures else ""
                keys = ("p50_ms", "p99_ms", "cpu_ms")
                errors = f" ({'; '.join(figures['errors'])})" if "errors" in figures else ""
                yield _row(*place, f"{figures['per_s']:g}{errors}", ratio, *(f"{figures[key]:g}" for key in keys))


def _growth(cells: Mapping[str, Cell]) -> Iterator[str]:
    yield from _head("what grows", "cost", "sizes", "costs", "exponent")
    for name, cell in cells.items():
        for cost, figures in cell["costs"].items():
            sizes = " · ".join(f"{each:g}" for each in cell["sizes"])
            values = " · ".join(f"{each:g}" for each in figures["values"])
            yield _row(name + _mark(cell), cost, sizes, values, f"{figures['exponent']:.2f}")


def _rates(cells: Mapping[str, Cell]) -> Iterator[str]:
    yield from _head("", "way", "per s", "per processor s", "ratio")
    for name, cell in cells.items():
        for way, figures in cell["ways"].items():
            wall = f"{figures['per_s']:g}" if "per_s" in figures else ""
            yield _row(name + _mark(cell), way, wall, f"{figures['per_cpu_s']:g}", f"{figures['ratio']:.2f}")


_TABLES = {
    "explaining": _explaining,
    "serving": _serving,
    "growth": _growth,
    "training": _rates,
    "archive": _rates,
}


def _mark(cell: Cell) -> str:
    return MARK if cell["disturbed"] else ""


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row(*["---"] * len(names))


def _row(*values: str) -> str:
    return f"| {' | '.join(values)} |"
