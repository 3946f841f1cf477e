"""Table 3: what our server costs as callers, seconds of audio, classes and bundles grow, with exponents."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.load import send
from benchmarks.peers.made import SMALL, made_once
from benchmarks.peers.measuring import Others, exponent
from benchmarks.peers.networks import SECONDS
from benchmarks.peers.servers import EXPLAINED, ours
from benchmarks.processes import resident_mib

CALLERS = (1, 4, 16, 64, 256)
LENGTHS = (1, 3, 10, 30, 60, 180, 600)
# Longer audio is not explained by default.
MAPPED_SECONDS = 120
CLASSES = (30, 1_000, 10_000, 100_000)
BUNDLES = (1, 2, 4)
# Audio that a slice answers about, in seconds of audio, and the most and fewest calls of it.
SLICE_AUDIO = 120
CALLS = (3, 40)
ROUNDS = 3
Costs = dict[str, list[float]]


def cells(small: Path, build: Path, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of each cell of the table and the function that measures it."""
    end = 2 if quick else None
    yield "growth/callers", partial(_cell, CALLERS[:end], partial(_callers, small, CALLERS[:end]))
    yield "growth/seconds of audio", partial(_cell, LENGTHS[:end], partial(_lengths, small, LENGTHS[:end]))
    yield "growth/classes", partial(_cell, CLASSES[:end], partial(_classes, small, build, CLASSES[:end]))
    yield "growth/bundles", partial(_cell, BUNDLES[:end], partial(_bundles, small, build, BUNDLES[:end]))


def _cell(sizes: Sequence[int], measure: Callable[[], Costs]) -> dict[str, Any]:
    with Others(time.monotonic) as others:
        costs = measure()
    found = {
        name: {
            "values": [float(f"{each:.4g}") for each in values],
            "exponent": round(exponent(sizes[: len(values)], values), 3),
        }
        for name, values in costs.items()
    }
    return {"sizes": list(sizes), "costs": found, **others.marks()}


def _callers(small: Path, sizes: Sequence[int]) -> Costs:
    """Return the median latency and the processor time of an answer; each round has all sizes."""
    latencies: dict[int, list[float]] = {size: [] for size in sizes}
    spent: dict[int, list[float]] = {size: [] for size in sizes}
    with ours([small]) as served, _client() as client:
        target = served.target(small, None, SECONDS)
        client.apply(send, (target, 2, 8))
        for _ in range(ROUNDS):
            for size in sizes:
                calls = max(CALLS[1], size)
                before = served.processor_seconds()
                load = client.apply(send, (target, size, calls))
                spent[size].append((served.processor_seconds() - before) / calls)
                latencies[size] += load.latencies
    return {
        "p50, ms": [1e3 * statistics.median(latencies[size]) for size in sizes],
        "processor, ms": [1e3 * statistics.median(spent[size]) for size in sizes],
    }


def _lengths(small: Path, sizes: Sequence[int]) -> Costs:
    costs: Costs = {}
    with ours([small]) as served, _client() as client:
        for kind, options in (("predict", None), ("explain, fused", EXPLAINED["fused"])):
            answered = [size for size in sizes if options is None or size <= MAPPED_SECONDS]
            targets = [served.target(small, options, size) for size in answered]
            costs[f"{kind}, processor ms"] = _costs(client, served.processor_seconds, targets, answered)
    return costs


def _classes(small: Path, build: Path, sizes: Sequence[int]) -> Costs:
    costs: Costs = {"predict, processor ms": [], "resident MiB": []}
    for size in sizes:
        bundle = made_once(small, build / "classes" / f"classes-{size}" / "1", SMALL, size)
        with ours([bundle]) as served, _client() as client:
            targets = [served.target(bundle, None, SECONDS)]
            costs["predict, processor ms"] += _costs(client, served.processor_seconds, targets, [SECONDS])
            costs["resident MiB"].append(resident_mib(served.pid))
    return costs


def _bundles(small: Path, build: Path, sizes: Sequence[int]) -> Costs:
    costs: Costs = {"predict of one, processor ms": [], "resident MiB": [], "start, processor s": []}
    for size in sizes:
        folders = [
            made_once(small, build / "bundles" / f"network-{number}" / "1", SMALL, CLASSES[0]) for number in range(size)
        ]
        with ours(folders) as served, _client() as client:
            costs["start, processor s"].append(served.processor_seconds())
            targets = [served.target(folders[0], None, SECONDS)]
            costs["predict of one, processor ms"] += _costs(client, served.processor_seconds, targets, [SECONDS])
            costs["resident MiB"].append(resident_mib(served.pid))
    return costs


def _costs(client: Any, clock: Callable[[], float], targets: Sequence[Any], lengths: Sequence[int]) -> list[float]:
    """Return the server's processor milliseconds of an answer for each target; the targets take turns."""
    spent: list[list[float]] = [[] for _ in targets]
    for target in targets:
        client.apply(send, (target, 2, 2))
    for _ in range(ROUNDS):
        for target, length, values in zip(targets, lengths, spent, strict=True):
            calls = min(max(SLICE_AUDIO // length, CALLS[0] if length < 100 else 1), CALLS[1])
            before = clock()
            load = client.apply(send, (target, 2, calls))
            if load.errors:
                raise RuntimeError(f"{length} s of audio: {load.errors[0]}")
            values.append((clock() - before) / calls)
    return [1e3 * statistics.median(values) for values in spent]


def _client() -> Any:
    """Return a pool with the process of the callers."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    return multiprocessing.get_context("spawn").Pool(1)
