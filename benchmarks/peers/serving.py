"""Table 2: servers of the same graph under the same callers, who each wait for their answer before the next request."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.load import Load, send
from benchmarks.peers.measuring import Others, Sample, ratio
from benchmarks.peers.servers import SERVERS, Served, Setting
from benchmarks.peers.workers import SkippedError

CALLERS = (1, 8, 32, 128)
KINDS = ("predict", "explain", "fused")
# Of one server under one number of callers, in one round; more where all callers need more for an answer each.
SLICE_SECONDS = 1.0
ROUNDS = 3
# A round that takes longer than this for all servers is the last of its cell.
LONG_SECONDS = 15
REFERENCE = "ours"


def cells(bundles: dict[str, Path], tools: Path, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of each cell of the table and the function that measures it: all callers on the same servers."""
    cores = os.cpu_count() or 1
    for network, bundle in bundles.items():
        for kind in KINDS[:1] if quick else KINDS:
            setting = Setting(bundle, kind, 1, cores, tools)
            callers = (1, 8) if quick else CALLERS
            yield f"serving/{network}/{kind}", partial(_cell, setting, callers, quick)


def _cell(setting: Setting, callers: tuple[int, ...], quick: bool) -> dict[str, Any]:
    skipped: dict[str, str] = {}
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        servers: dict[str, Served] = {}
        for name, start in SERVERS.items():
            try:
                servers[name] = stack.enter_context(start(setting))
            except SkippedError as error:
                skipped[name] = str(error)
        context = multiprocessing.get_context("spawn")
        client = stack.enter_context(context.Pool(1))
        rates = {name: _warm_up(client, served) for name, served in servers.items()}
        for count in callers:
            with Others(time.monotonic) as others:
                rounds, errors = _rounds(client, servers, count, rates, 1 if quick else ROUNDS)
            found[str(count)] = {"servers": _figures(rounds, errors), **others.marks()}
    return {"callers": found, "skipped": skipped, "threads": setting.threads, "instances": setting.instances}


def _warm_up(client: Any, served: Served) -> float:
    """Return answers per second of two callers, after some to warm up."""
    client.apply(send, (served.target, 2, 4))
    load = client.apply(send, (served.target, 2, 8))
    return len(load.latencies) / load.seconds or 1.0


def _rounds(
    client: Any, servers: dict[str, Served], callers: int, rates: dict[str, float], rounds: int
) -> tuple[dict[str, list[tuple[Load, float]]], dict[str, list[str]]]:
    """Return each server's loads with its processor seconds, and its errors; servers take turns."""
    found: dict[str, list[tuple[Load, float]]] = {name: [] for name in servers}
    errors: dict[str, list[str]] = {name: [] for name in servers}
    for index in range(rounds):
        begun = time.monotonic()
        for name in list(servers)[:: 1 if index % 2 else -1]:
            calls = max(callers, round(SLICE_SECONDS * rates[name]), 4)
            before = servers[name].processor_seconds()
            load: Load = client.apply(send, (servers[name].target, callers, calls))
            spent = servers[name].processor_seconds() - before
            errors[name] += load.errors
            if load.latencies:
                found[name].append((load, spent))
                rates[name] = len(load.latencies) / load.seconds
        if time.monotonic() - begun > LONG_SECONDS:
            break
    return found, errors


def _figures(rounds: dict[str, list[tuple[Load, float]]], errors: dict[str, list[str]]) -> dict[str, Any]:
    """Return answers per second, per processor second, latencies and errors, by server."""
    samples = {
        name: [Sample(load.seconds / len(load.latencies), cpu / len(load.latencies)) for load, cpu in loads]
        for name, loads in rounds.items()
    }
    figures: dict[str, Any] = {}
    for name, loads in rounds.items():
        if not loads:
            figures[name] = {"errors": errors[name][:3]}
            continue
        latencies = sorted(each for load, _ in loads for each in load.latencies)
        figures[name] = {
            "per_s": round(1 / statistics.median(each.wall for each in samples[name]), 1),
            "cpu_ms": round(1e3 * statistics.median(each.cpu for each in samples[name]), 2),
            "p50_ms": round(1e3 * statistics.median(latencies), 1),
            "p99_ms": round(1e3 * latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))], 1),
            "answers": len(latencies),
        }
        if errors[name]:
            figures[name]["errors"] = [f"{len(errors[name])} of them", *sorted(set(errors[name]))[:3]]
        if len(samples[name]) == len(samples.get(REFERENCE, [])):
            wall, base = ([each.wall for each in samples[one]] for one in (name, REFERENCE))
            cpu, own = ([each.cpu for each in samples[one]] for one in (name, REFERENCE))
            figures[name] |= {"speed_ratio": round(1 / ratio(wall, base), 3), "cpu_ratio": round(ratio(cpu, own), 3)}
    return figures
