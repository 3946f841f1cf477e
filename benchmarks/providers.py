"""Latency of a bundle's graphs on each ONNX Runtime provider of this machine, and the difference of their outputs.

  python benchmarks/providers.py build/demo/bundles/act-da/1

For `predict.onnx` and `explain.onnx`, at several batch sizes of 3 s of speech: the median milliseconds of interleaved
calls, and the largest relative L2 error of logits and of each map against the first provider. Without a GPU it measures
the CPU only; it has not been run on a GPU yet.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the first import of onnxruntime

import onnxruntime as ort

BATCH_SIZES = (1, 8, 32)
CALLS = 15
SAMPLES = 48_000
Feeds = dict[str, NDArray[Any]]


def sessions(graph: Path) -> dict[str, ort.InferenceSession]:
    """Open the graph on every provider that really runs it: a listed one may fall back silently."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    opened = {}
    for provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
        if provider in ort.get_available_providers():
            options: Any = {"cudnn_conv_algo_search": "HEURISTIC"} if provider.startswith("CUDA") else {}
            fallback = [] if provider.startswith("CPU") else ["CPUExecutionProvider"]
            session = ort.InferenceSession(str(graph), providers=[(provider, options), *fallback])
            if session.get_providers()[0] == provider:
                opened[provider] = session
    return opened


def feeds(bundle: Path, batch: int, explain: bool) -> Feeds:
    """Return a batch of the bundle's own utterances."""
    files = sorted((bundle / "utterances").glob("*.flac"))
    rows = [np.resize(soundfile.read(files[i % len(files)], dtype="float32")[0], SAMPLES) for i in range(batch)]
    given: Feeds = {"audio": np.stack(rows), "lengths": np.full(batch, SAMPLES)}
    return {**given, "target": np.full(batch, -1)} if explain else given


def measure(graph: Path, batch: int) -> list[str]:
    """Print a line for each provider."""
    opened, given = sessions(graph), feeds(graph.parent, batch, graph.name.startswith("explain"))
    names = [output.name for output in next(iter(opened.values())).get_outputs()]
    compared = [name for name in names if name == "logits" or name.startswith("saliency")]
    answers = {p: dict(zip(names, s.run(names, given), strict=True)) for p, s in opened.items()}  # and a warm-up
    times: dict[str, list[float]] = {provider: [] for provider in opened}
    for _ in range(CALLS):
        for provider, session in opened.items():
            started = time.perf_counter()
            session.run(names, given)
            times[provider].append(1e3 * (time.perf_counter() - started))
    first = next(iter(answers.values()))
    lines = []
    for provider, answer in answers.items():
        errors = [float(np.linalg.norm(answer[n] - first[n]) / np.linalg.norm(first[n])) for n in compared]
        median = statistics.median(times[provider])
        lines.append(f"{graph.name:13} batch {batch:2}  {provider:22} {median:8.2f} ms  error {max(errors):.1e}")
    return lines


def main() -> int:
    """Print the table of one bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle, such as build/demo/bundles/act-da/1")
    bundle = parser.parse_args().bundle
    if not (bundle / "explain.onnx").is_file():
        print(f"error: {bundle}: no explain.onnx there; name the folder of one version", file=sys.stderr)
        return 2
    print(f"onnxruntime {ort.__version__}, {os.cpu_count()} cores")
    for name in ("predict.onnx", "explain.onnx"):
        for batch in BATCH_SIZES:
            print("\n".join(measure(bundle / name, batch)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
