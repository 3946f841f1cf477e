"""Check statuses and memory of a real server under mixed traffic for many minutes.

  python -m benchmarks.soak --minutes 20 [--bundles build/demo/bundles]

Every kind of call of benchmarks/traffic.py, from several clients at once: short and long, with and without maps, bad
input, cancellations, tight deadlines, reconnects. Prints how often each call ended in which status, and how the
server's resident memory grew from the end of the warm-up (a quarter of the time) to the end of the run: the medians of
a tenth of the time each. Exits with 1 for an unexpected status, a warning in the log, growth above the limit, work left
over, or an unclean end. Without --bundles it serves the demo's bundles, or toy ones if there is no demo.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.traffic import LIMIT_SECONDS, SCENARIOS, Caller, outcome
from tests.serving import toy
from tests.serving.harness import ServerProcess

DEMO = Path("build/demo/bundles")
GROWTH_LIMIT = 0.05
WARM_UP_SHARE, WINDOW_SHARE = 0.25, 0.1
SAMPLE_SECONDS = 1.0
CALLERS = 6
STOP_SECONDS = 180.0
SHOWN_FAULTS = 10
LEFT_OVER = ("speakerlens_queue_depth", "speakerlens_requests_in_flight")
WARNING = re.compile(r" (WARNING|ERROR|CRITICAL) |^Traceback")


@dataclass
class Tally:
    """Counts, faults and memory samples (seconds, MB) so far."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> int:
    """Run the soak; return 0 if there was no fault, else 1."""
    parser = argparse.ArgumentParser(description="Check statuses and memory of a server under mixed traffic.")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--bundles", type=Path, help=f"(default: {DEMO}, or toy ones)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, and the log beside it")
    arguments = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        bundles = arguments.bundles or (DEMO if DEMO.is_dir() else _toys(Path(folder) / "bundles"))
        print(f"{arguments.minutes:g} minutes of traffic from {CALLERS} callers over {bundles}", flush=True)
        server = ServerProcess(bundles, "--log-level=warning", f"--speakers={folder}/speakers.sqlite")
        try:
            soak(server, 60 * arguments.minutes, tally)
        finally:
            server.channel.close()
            status = server.stop(timeout=STOP_SECONDS)
        if status:
            tally.faults.append(f"the server ended with status {status}")
        tally.faults += [f"in the log: {line}" for line in server.log.splitlines() if WARNING.search(line)]
        if arguments.json is not None:
            arguments.json.with_suffix(".log").write_text(server.log, encoding="utf-8")
    return report(tally, 60 * arguments.minutes, arguments.json)


def soak(server: ServerProcess, seconds: float, tally: Tally) -> None:
    """Send traffic for a number of seconds, and sample the server's memory every second."""
    variants = sorted({name.partition("/")[0] for name in server.ready["models"]})
    end = threading.Event()
    callers = [
        threading.Thread(target=_call, args=(Caller(server.ready["grpc"], variants, seed), end, tally), name=str(seed))
        for seed in range(CALLERS)
    ]
    started = time.monotonic()
    for caller in callers:
        caller.start()
    try:
        while (elapsed := time.monotonic() - started) < seconds and server.process.poll() is None:
            tally.memory.append((elapsed, resident_mb(server.process.pid)))
            time.sleep(SAMPLE_SECONDS)
    finally:
        end.set()
        for caller in callers:
            caller.join()
    deadline = time.monotonic() + LIMIT_SECONDS
    while (left := _left_over(server)) and time.monotonic() < deadline:
        time.sleep(SAMPLE_SECONDS)
    if left:
        tally.faults.append(f"work is left over: {left}")


def growth(memory: list[tuple[float, float]], seconds: float) -> tuple[float, float]:
    """Return the median MB of the tenth of the time after the warm-up, and of the last tenth."""
    begin, width = WARM_UP_SHARE * seconds, WINDOW_SHARE * seconds
    first = [size for at, size in memory if begin <= at < begin + width]
    last = [size for at, size in memory if at >= seconds - width]
    return statistics.median(first), statistics.median(last)


def report(tally: Tally, seconds: float, file: Path | None) -> int:
    """Print the figures; return 1 if there was a fault, else 0."""
    print(f"{'call':<22}{'status':<20}{'count':>8}")
    for (call, status), count in sorted(tally.counts.items()):
        print(f"{call:<22}{status:<20}{count:>8}")
    first, last = growth(tally.memory, seconds)
    peak = max(size for _, size in tally.memory)
    change = last / first - 1
    calls = sum(tally.counts.values())
    print(
        f"{calls} calls; memory {first:.0f} MB after the warm-up, {last:.0f} MB at the end ({change:+.1%}), "
        f"{peak:.0f} MB at most"
    )
    if change > GROWTH_LIMIT:
        tally.faults.append(f"memory grew by {change:.1%}, more than {GROWTH_LIMIT:.0%}")
    for fault in tally.faults[:SHOWN_FAULTS]:
        print(f"FAULT {fault}")
    print(f"{len(tally.faults)} faults")
    if file is not None:
        counts = {f"{call} {status}": count for (call, status), count in sorted(tally.counts.items())}
        figures = {
            **environment(),
            "minutes": seconds / 60,
            "calls": counts,
            "first_mb": round(first, 1),
            "last_mb": round(last, 1),
            "peak_mb": round(peak, 1),
            "growth": round(change, 4),
            "faults": tally.faults,
        }
        file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if tally.faults else 0


def _call(caller: Caller, end: threading.Event, tally: Tally) -> None:
    weights = [scenario.weight for scenario in SCENARIOS]
    while not end.is_set():
        (scenario,) = caller.rng.choices(SCENARIOS, weights)
        status, details = outcome(scenario, caller)
        with tally.lock:
            tally.counts[scenario.run.__name__, status] += 1
            if status not in scenario.statuses:
                tally.faults.append(f"{scenario.run.__name__} ended in {status}: {details}")
    caller.channel.close()


def _left_over(server: ServerProcess) -> dict[str, float]:
    """Return the server's gauges of work in progress that are not 0."""
    return {name: value for name, value in server.metrics().items() if value and name.startswith(LEFT_OVER)}


def resident_mb(process: int) -> float:
    """Return the resident memory of a process in MB."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {process} has ended")


def _toys(root: Path) -> Path:
    for seed, variant in enumerate(("act-da", "clean", "da")):
        toy.write_bundle(root, variant, 1, seed, slow_seconds=10**6)
    return root


if __name__ == "__main__":
    sys.exit(main())
