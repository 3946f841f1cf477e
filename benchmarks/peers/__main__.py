"""Measure ours beside what a user would pick instead, and write the tables.

    make bench                        (all, under 20 minutes on two cores)
    make bench ONLY="serving/small"   (cells whose names begin so)
    python -m benchmarks.peers --bundles build/demo/bundles --resnet34 DIR/clean/1 --only explaining training

Tables: explaining, serving, growth, training, archive. Cells that the file of results has are not measured again,
unless --fresh; a run that had too little time goes on where it was. What is compared takes turns; quoted are medians of
processor time and of the clock, and ratios within a round. A cell is marked as disturbed where other processes took
more than 5 % of the cores. Peers are packages of the extra `bench`; those that are not installed are named as skipped.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.results import Results, machine_name
from benchmarks.peers.workers import SkippedError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the first import of onnxruntime

RESULTS = Path(__file__).parents[1] / "results"
Cells = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def main(words: list[str] | None = None) -> int:
    """Measure the cells that are missing; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, default=Path("build/demo/bundles"), help="the demo's (%(default)s)")
    parser.add_argument("--variant", default="act-da", help="the demo's variant to measure (%(default)s)")
    parser.add_argument("--resnet34", metavar="BUNDLE", type=Path, help="by default one with random weights is made")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PREFIX", help="cells whose names begin so")
    parser.add_argument("--quick", action="store_true", help="one short round of a part, to try the program")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file of results has")
    parser.add_argument("--minutes", type=float, default=18, help="begin no cell after these (%(default)s)")
    parser.add_argument("--build", type=Path, default=Path("build/peers"), help="what is made and fetched")
    parser.add_argument("--out", type=Path, help="the file of results, <machine>.json in benchmarks/results")
    arguments = parser.parse_args(words)
    out = arguments.out or RESULTS / f"{machine_name()}.json"
    results = Results(out)
    until = time.monotonic() + 60 * arguments.minutes
    for name, measure in _cells(arguments):
        if not name.startswith(tuple(arguments.only)) or (name in results.cells and not arguments.fresh):
            continue
        begun = time.monotonic()
        if begun > until:
            print(f"{name}: left for the next run", flush=True)
            continue
        try:
            cell = measure()
        except SkippedError as error:
            print(f"{name}: skipped, {error}", flush=True)
            continue
        results.add(name, {**cell, "seconds": round(time.monotonic() - begun, 1)})
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    return 0


def _cells(arguments: argparse.Namespace) -> Cells:
    from benchmarks.peers import archives, explaining, growth, serving, updates
    from benchmarks.peers.made import RESNET34, made_once
    from benchmarks.peers.networks import newest

    small = newest(arguments.bundles, arguments.variant)
    bundles = {"small": small}
    if arguments.resnet34 or not arguments.quick:
        made = arguments.build / "resnet34" / "1"
        bundles["resnet34"] = arguments.resnet34 or made_once(small, made, RESNET34, 1_000)
    yield from explaining.cells(bundles, arguments.quick)
    yield from serving.cells(bundles, arguments.build / "triton", arguments.quick)
    yield from growth.cells(small, arguments.build, arguments.quick)
    yield from updates.cells(arguments.bundles.parent / "corpus", arguments.quick)
    yield from archives.cells(bundles, arguments.bundles.parent / "corpus", arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
