"""Check a machine with a GPU before it serves: placement, outputs, batches, warm-up, recovery, half precision.

    make check-gpu BUNDLES=DIR
    python -m benchmarks.gpu DIR --device cuda --out build/gpu.json

For each bundle, in float32, and with convolutions in float16 (export/half.py):

* placement: the nodes of each graph on the GPU and on the CPU; those on the CPU may only compute shapes, and nothing
  may be copied between;
* outputs: each graph on the device against the CPU, relative L2 error by output;
* batches: each utterance in a batch against the same one alone, and milliseconds an utterance in batches of 1 to 32;
* ways: bound inputs and outputs, two instances, CUDA graphs, TensorRT, all GPUs, each against the CPU;
* warm-up: all shapes that a server warms up, and the time it takes;
* recovery: a batch that finds no memory is refused, and an engine that is opened again computes the same as before.

Exit status 1 if a check fails. Without a GPU the record says what was skipped, and the rest runs on the CPU,
which checks this program alone.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import soundfile
from numpy.typing import NDArray

from benchmarks.environment import environment
from benchmarks.gpu_paths import check_ways, fed_by_values
from speakerlens.cuda import CPU, CUDA, CudaError, Device, choose
from speakerlens.export.half import in_half
from speakerlens.serving.bundle import EXPLAIN, PREDICT, VERIFY, Bundle
from speakerlens.serving.engine.graphs import Job
from speakerlens.serving.engine.placement import Placement as EnginePlacement
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.models.reader import read_bundle

RATE = 16_000
SECONDS = 3
HALF_SUFFIX = ".fp16.onnx"
BATCHES = (1, 2, 4, 8, 16, 32)
CALLS = 10
# Relative L2 error against the CPU: of scores and of maps, in which one ReLU at its kink flips a few bins.
TOLERANCES = {"float32": (1e-4, 1e-3), "half": (1e-2, 5e-2)}
ALONE = 1e-4
# Operators that compute shapes; ONNX Runtime keeps these on the CPU, where their values are needed.
SHAPES = frozenset(
    """Add Cast Concat Div Equal Expand Floor Gather Mod Mul Range Reshape Shape Slice Squeeze Sub Unsqueeze
    Where""".split()
)
# Memory that is left to a batch that is to find none.
LEFT_BYTES = 32 * 2**20

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Placement:
    """Where a graph's nodes run: `on_cpu` by operator, and the copies between GPU and CPU.

    Attributes:
        of_values: nodes on the CPU that depend on the values of inputs, which a CUDA graph would not compute again.
    """

    on_cuda: int
    on_cpu: dict[str, int]
    copies: int
    of_values: list[str]


def main() -> int:
    """Write the record, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "bundles", metavar="BUNDLES", type=Path, help="folder of bundles, <variant>/<version>/bundle.json"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("build/gpu.json"))
    arguments = parser.parse_args()
    folders = sorted(file.parent for file in arguments.bundles.glob("*/*/bundle.json"))
    if not folders:
        print(f"error: {arguments.bundles}: no bundle there; expected <variant>/<version>/bundle.json", file=sys.stderr)
        return 2
    report = check(folders, arguments.device)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for part in ("skipped", "failed"):
        for line in report[part]:
            print(f"{part}: {line}")
    print(f"{arguments.out}: {len(folders)} bundles on {report['device']}, {len(report['failed'])} checks failed")
    return 1 if report["failed"] else 0


def check(folders: list[Path], name: str) -> dict[str, Any]:
    """Return the record of all checks of some bundles."""
    report: dict[str, Any] = {"environment": environment(), "failed": [], "skipped": []}
    try:
        device = choose(name)
    except CudaError as error:
        report["skipped"].append(
            f"everything on a GPU, as {error}; what follows ran on the CPU, and checks this program alone"
        )
        device = Device(CPU)
    report |= {"device": device.provider, "gpu": gpus() if device.provider == CUDA else None, "bundles": []}
    for folder in folders:
        bundle = read_bundle(folder)
        print(f"{bundle.name} on {device.provider}")
        report["bundles"].append({"bundle": bundle.name, **_check_bundle(bundle, device, name, report)})
    return report


def gpus() -> list[str]:
    """Return what nvidia-smi says of the GPUs: name, driver, memory, clocks, power limit."""
    fields = "name,driver_version,memory.total,clocks.max.sm,power.limit,compute_cap"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return []
    return done.stdout.strip().splitlines()


def _check_bundle(bundle: Bundle, device: Device, name: str, report: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one bundle; add what fails, and what cannot be checked, to the report."""
    found: dict[str, Any] = {"placement": {}, "outputs": {}, "batches": {}}

    def insist(holds: bool, what: str) -> None:
        if not holds:
            report["failed"].append(f"{bundle.name}: {what}")

    with tempfile.TemporaryDirectory() as folder:
        for path in [*graphs_of(bundle.folder), *halves(bundle.folder, Path(folder))]:
            _check_graph(path, bundle.folder / path.name.replace(HALF_SUFFIX, ".onnx"), device, found, insist)
    device_name = "cpu" if device.provider == CPU else name

    def skip(what: str) -> None:
        report["skipped"].append(f"{bundle.name}: {what}")

    found["ways"] = check_ways(bundle, device_name, _of_allowed, insist, skip)
    engine, found["warm-up"] = warmed_up(bundle, device_name)
    found["recovery"] = recovery(bundle, engine, device)
    insist(found["recovery"]["same as before"], "an engine that is opened again computes something else")
    if device.provider == CUDA:
        insist(found["recovery"]["without memory"] != "computed", "a batch without memory for it was computed")
    else:
        skip("a batch that finds no memory")
    return found


def _check_graph(
    path: Path, whole: Path, device: Device, found: dict[str, Any], insist: Callable[[bool, str], None]
) -> None:
    """Add the figures of a graph, whose results are compared with those of `whole`, in float32, on the CPU."""
    graph = path.name
    half = path != whole
    placed = placement(path, device)
    found["placement"][graph] = asdict(placed)
    if device.provider == CUDA:
        insist(placed.copies == 0, f"{graph} copies between GPU and CPU {placed.copies} times")
        foreign = sorted(set(placed.on_cpu) - SHAPES)
        insist(not foreign, f"{graph} computes on the CPU: {', '.join(foreign)}")
        values = ", ".join(placed.of_values[:5])
        insist(not values, f"{graph} computes on the CPU, from the values of inputs: {values}")
    scores, maps = TOLERANCES["half" if half else "float32"]
    errors = differences(whole, path, device)
    found["outputs"][graph] = errors
    for output, error in errors.items():
        limit = maps if output.startswith("saliency") else scores
        insist(error <= limit, f"{graph}: {output} differs from the CPU's by {error:.1e}, more than {limit:.0e}")
    speed, error = batches(path, device)
    found["batches"][graph] = {"milliseconds an utterance": speed, "error against alone": error}
    limit = maps if half else ALONE
    insist(error <= limit, f"{graph}: an utterance in a batch differs from the same alone by {error:.1e}")


def graphs_of(bundle: Path) -> list[Path]:
    """Return the float32 graphs of a bundle."""
    return [path for path in (bundle / name for name in (EXPLAIN, PREDICT, VERIFY)) if path.is_file()]


def halves(bundle: Path, folder: Path) -> list[Path]:
    """Write the bundle's graphs with convolutions in float16 into a folder, and link its utterances there."""
    (folder / "utterances").symlink_to((bundle / "utterances").resolve())
    made = []
    for graph in graphs_of(bundle):
        made.append(folder / f"{graph.stem}{HALF_SUFFIX}")
        made[-1].write_bytes(in_half(graph.read_bytes(), "fp16"))
    return made


def session_of(graph: Path, device: Device, profile: Path | None = None) -> ort.InferenceSession:
    """Return an open graph, as the server opens it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(str(graph), options, providers=device.providers(), enable_fallback=0)


def inputs(session: ort.InferenceSession, folder: Path, rows: int) -> Arrays:
    """Return a batch of the bundle's own utterances, or of noise, of different lengths up to 3 s."""
    files = sorted((folder / "utterances").glob("*.flac"))
    samples = SECONDS * RATE
    own = [soundfile.read(file, dtype="float32")[0] for file in files[:rows]]
    own = own or [np.random.default_rng(0).normal(0, 0.05, samples).astype(np.float32)]
    audio = np.zeros((rows, samples), np.float32)
    lengths = np.array([samples - 1777 * (row % 7) for row in range(rows)])
    for row, length in enumerate(lengths):
        audio[row, :length] = np.resize(own[row % len(own)], length)
    given: Arrays = {"audio": audio, "lengths": lengths}
    for node in session.get_inputs():
        if node.name == "target":
            given["target"] = np.full(rows, -1)
        if node.name == "reference":
            given["reference"] = np.random.default_rng(0).normal(size=(rows, node.shape[1])).astype(np.float32)
    return given


def placement(graph: Path, device: Device) -> Placement:
    """Return where a graph's nodes ran, by ONNX Runtime's own profile of one run."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(graph, device, Path(folder) / "profile")
        session.run(None, inputs(session, graph.parent, 2))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    nodes = [each["args"] for each in events if each.get("cat") == "Node" and each["name"].endswith("_kernel_time")]
    on_cpu = Counter(node["op_name"] for node in nodes if node["provider"] == CPU)
    names = {
        each["name"].removesuffix("_kernel_time") for each in events if each.get("args", {}).get("provider") == CPU
    }
    return Placement(
        on_cuda=sum(node["provider"] == CUDA for node in nodes),
        on_cpu=dict(on_cpu),
        copies=sum(node["op_name"].startswith("Memcpy") for node in nodes),
        of_values=fed_by_values(graph, names) if device.provider == CUDA else [],
    )


def differences(whole: Path, graph: Path, device: Device) -> dict[str, float]:
    """Return the error of each output on the device against the CPU, the worst of eight utterances.

    `whole` is the graph for the CPU, in float32.
    """
    sessions = [session_of(whole, Device(CPU)), session_of(graph, device)]
    given = inputs(sessions[0], whole.parent, 8)
    names = [each.name for each in sessions[0].get_outputs()]
    expected, found = (session.run(names, given) for session in sessions)
    return {
        name: max(_error(name, row, other) for row, other in zip(one, two, strict=True))
        for name, one, two in zip(names, found, expected, strict=True)
    }


def _error(name: str, answer: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the relative L2 error; of a cosine, which may be near 0, the absolute one."""
    return abs(float(answer) - float(expected)) if name == "score" else relative(answer, expected)


def batches(graph: Path, device: Device) -> tuple[dict[int, float], float]:
    """Return milliseconds an utterance by size of the batch, the median of some calls; and the worst error."""
    session = session_of(graph, device)
    names = [each.name for each in session.get_outputs()]
    speed, worst = {}, 0.0
    for rows in BATCHES:
        given = inputs(session, graph.parent, rows)
        together = session.run(names, given)
        for row in {0, rows - 1}:
            alone = session.run(names, {name: values[row : row + 1] for name, values in given.items()})
            worst = max(worst, *(relative(many[row], one[0]) for many, one in zip(together, alone, strict=True)))
        seconds = []
        for _ in range(CALLS):
            started = time.perf_counter()
            session.run(names, given)
            seconds.append(time.perf_counter() - started)
        speed[rows] = round(1e3 * statistics.median(seconds) / rows, 3)
    return speed, worst


def relative(answer: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the L2 norm of the difference over that of what is expected; infinity for NaN."""
    wanted = np.asarray(expected, np.float64)
    norm = float(np.linalg.norm(wanted)) or 1.0
    error = float(np.linalg.norm(np.asarray(answer, np.float64) - wanted)) / norm
    return error if np.isfinite(error) else float("inf")


def _of_allowed(answer: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the relative error over what is allowed of maps."""
    return relative(answer, expected) / TOLERANCES["float32"][1]


def warmed_up(bundle: Bundle, device: str) -> tuple[Engine, dict[str, Any]]:
    """Return an engine as the server makes it, and what its warm-up took."""
    started = time.monotonic()
    engine = Engine(bundle, EnginePlacement(device, 0))
    opened = time.monotonic()
    engine.warm_up()
    return engine, {
        "shapes a graph": len(engine.predict.buckets.warm),
        "seconds to open": round(opened - started, 2),
        "seconds to warm up": round(time.monotonic() - opened, 2),
    }


def recovery(bundle: Bundle, engine: Engine, device: Device) -> dict[str, Any]:
    """Return what a large batch without memory for it says, and whether a reopened engine computes as before."""
    noise = np.random.default_rng(0).normal(0, 0.05, SECONDS * RATE).astype(np.float32)

    def compute(rows: int, seconds: int = SECONDS) -> NDArray[np.float32]:
        jobs = [Job(np.resize(noise, seconds * RATE)) for _ in range(rows)]
        return engine.predict.compute(engine.predict.prepare(jobs))[0].embedding

    before = compute(1)
    without = "skipped"
    if device.provider == CUDA:
        with memory_taken(device.index):
            without = _outcome(lambda: compute(engine.predict.buckets.sizes[-1], 60))
    started = time.monotonic()
    engine.reopen()
    return {
        "without memory": without,
        "seconds to open again": round(time.monotonic() - started, 2),
        "same as before": relative(compute(1), before) <= ALONE,
    }


def _outcome(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - what it is, is the result
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "computed"


@contextmanager
def memory_taken(index: int) -> Iterator[None]:
    """Take the GPU's free memory but for a little, by CUDA's runtime, which ONNX Runtime has loaded."""
    runtime = ctypes.CDLL(f"libcudart.so.{ort.cuda_version.partition('.')[0]}")
    runtime.cudaSetDevice(index)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    blocks: list[ctypes.c_void_p] = []
    runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    size = max(0, free.value - LEFT_BYTES)
    while size > LEFT_BYTES:  # memory may be in pieces
        block = ctypes.c_void_p()
        if runtime.cudaMalloc(ctypes.byref(block), ctypes.c_size_t(size)) == 0:
            blocks.append(block)
            runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
            size = min(size, max(0, free.value - LEFT_BYTES))
        else:
            runtime.cudaGetLastError()
            size //= 2
    try:
        yield
    finally:
        for block in blocks:
            runtime.cudaFree(block)


if __name__ == "__main__":
    sys.exit(main())
