"""Thread pools of ONNX Runtime, and instances of one thread: time of graphs alone, without a server.

    python -m benchmarks.thread_pools BUNDLES --variant act-da --graph explain --out RESULT.json

Each arrangement runs in a process of its own on the same graphs; callers are threads that compute 3 s of noise, each on
the next variant in turn. The processes take turns every few calls, so that other work on the machine affects all alike.
Printed are medians over the rounds: milliseconds of processor time and of waiting for one call.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import environment

ARRANGEMENTS = ("spinning", "no spinning", "spinning stopped", "one pool", "instances")
SECONDS = 3.0


def sessions(arrangement: str, files: list[Path], outputs: tuple[str, ...], threads: int) -> list[Any]:
    """Return an open session for each file."""
    import onnxruntime as ort  # noqa: PLC0415  (the parent of the processes needs none)

    from speakerlens.serving.engine.weights import SharedWeights  # noqa: PLC0415

    if arrangement == "one pool":
        ort.set_global_thread_pool_sizes(threads, 1)

    def options(count: int) -> Any:
        made = ort.SessionOptions()
        made.intra_op_num_threads = count
        made.inter_op_num_threads = 1
        made.use_per_session_threads = arrangement != "one pool"
        made.enable_mem_pattern = False
        if arrangement == "no spinning":
            made.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if arrangement == "spinning stopped":
            made.add_session_config_entry("session.force_spinning_stop", "1")
        return made

    count = 1 if arrangement == "instances" else threads
    providers = ["CPUExecutionProvider"]
    arranged = (SharedWeights().arrange(file.read_bytes(), outputs, options(1), providers) for file in files)
    return [each.open(options(count)) for each in arranged]


def work(arguments: argparse.Namespace) -> None:
    """Compute as many calls as each line of the input says, with as many callers and variants; write what they took."""
    from speakerlens.serving.engine.graphs import EXPLAIN_SPECS, PREDICT_SPEC  # noqa: PLC0415

    spec = PREDICT_SPEC if arguments.graph == "predict" else EXPLAIN_SPECS["s2"]
    files = [next(arguments.bundles.glob(f"{variant}/*/{spec.file}")) for variant in arguments.variants]
    opened = sessions(arguments.arrangement, files, spec.outputs, arguments.threads)
    audio = np.random.default_rng(0).normal(0, 0.05, (1, int(SECONDS * 16_000))).astype(np.float32)
    inputs: dict[str, Any] = {"audio": audio, "lengths": np.array([audio.shape[1]], np.int64)}
    if spec.file != PREDICT_SPEC.file:
        inputs["target"] = np.array([-1], np.int64)
    # Without instances, calls wait for the one thread that computes, as they do in a server.
    with ThreadPoolExecutor(arguments.threads if arguments.arrangement == "instances" else 1) as device:

        def call(index: int, variants: int) -> float:
            started = time.monotonic()
            session = opened[index % variants]
            device.submit(session.run, spec.outputs, inputs).result()
            return time.monotonic() - started

        for line in sys.stdin:
            calls, callers, variants = json.loads(line)
            before, started = time.process_time(), time.monotonic()
            taken = in_threads(call, calls, callers, variants)
            spent = time.process_time() - before
            print(
                json.dumps([spent / calls, statistics.median(taken), (time.monotonic() - started) / calls]), flush=True
            )


def in_threads(call: Callable[[int, int], float], calls: int, callers: int, variants: int) -> list[float]:
    """Return what calls took, of which some are in work at a time."""
    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(lambda index: call(index, variants), range(calls)))


def main() -> None:
    """Print a line for each arrangement, number of variants and of callers; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("--variants", nargs="+", default=["act-da"])
    parser.add_argument("--graph", choices=["predict", "explain"], default="predict")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=24)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arrangement", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arrangement:
        work(arguments)
        return
    given = [sys.executable, "-m", "benchmarks.thread_pools", *sys.argv[1:], "--arrangement"]
    workers = {
        name: subprocess.Popen([*given, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ARRANGEMENTS
    }
    cases = [(callers, variants) for variants in sorted({1, len(arguments.variants)}) for callers in (1, 8)]
    found: dict[str, dict[str, list[float]]] = {}
    for callers, variants in cases:
        figures: dict[str, list[list[float]]] = {name: [] for name in ARRANGEMENTS}
        for index in range(arguments.rounds + 1):
            for name in ARRANGEMENTS if index % 2 else ARRANGEMENTS[::-1]:
                worker = workers[name]
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write(json.dumps([arguments.calls, callers, variants]) + "\n")
                worker.stdin.flush()
                figures[name].append(json.loads(worker.stdout.readline()))
        case = f"{variants} graphs, {callers} callers"
        found[case] = {}
        for name, rounds in figures.items():
            medians = [round(1000 * statistics.median(each), 2) for each in zip(*rounds[1:], strict=True)]
            found[case][name] = medians
            print(
                f"{case}  {name:17} processor {medians[0]:7.2f}  waits {medians[1]:7.2f}  each {medians[2]:7.2f} ms",
                flush=True,
            )
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    if arguments.out is not None:
        result = {**environment(), "columns": ["processor", "waits", "each"], "milliseconds": found}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
