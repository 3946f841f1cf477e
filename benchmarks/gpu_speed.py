"""Measure the speed of a bundle's graphs on a GPU: batches, number formats, stages, the device's ceiling, and gRPC.

    make bench-gpu BUNDLES=DIR
    python -m benchmarks.gpu_speed DIR/variant/1 --out build/gpu_speed.json

* ceiling: a large matrix product in each format, in TFLOP/s;
* graphs: `predict`, and maps of S4, S2 to S4, S1 to S4, in fp32, tf32, fp16 and bf16 (export/half.py), in
  batches of 1 to 256 utterances of 2 s: milliseconds with inputs and outputs on the device (IO binding), and with both
  in the host's memory; utterances a second; TFLOP/s, and their share of the ceiling; relative L2 errors against fp32 on
  the CPU;
* CUDA graph, TensorRT: a fixed shape in one launch, and in TensorRT with its cache of engines where it is installed;
* engine: the server's own path from samples to results, in each of its ways (benchmarks/gpu_serving.py);
* gRPC: `IdentifyBatch` against a server, in the same ways, and its share of the graph's speed.

Under 8 minutes. The record is written after each cell, and a second run measures what is missing; no cell begins after
`--minutes`. Without a GPU everything runs on the CPU with tiny sizes, which checks this program alone.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.environment import environment
from benchmarks.formats import operations
from benchmarks.gpu import gpus, relative
from benchmarks.gpu_serving import GRPC_WAYS, WAYS, engine_speed, grpc_speed
from benchmarks.peers.model import OUTPUTS as MAPS
from benchmarks.peers.networks import batch_of
from speakerlens.cuda import CPU, CUDA, TENSORRT, CudaError, Device, choose, one_line
from speakerlens.export.half import HALF, in_half
from speakerlens.serving.engine.weights import cut

SECONDS = 2
FORMATS = ("fp32", "tf32", "fp16", "bf16")
SCORES = MAPS["predict"]
GRAPHS = {
    "predict": SCORES,
    "S4": (*SCORES, "features", "saliency_s4"),
    "S2 to S4": MAPS["fused"],
    "S1 to S4": MAPS["explain"],
}
BATCHES, TINY_BATCHES = (1, 4, 16, 64, 128, 256), (1, 2)
PRODUCT, TINY_PRODUCT = 8192, 256
CALLS_SECONDS = 0.4
CAPTURED_ROWS = 64
ENGINE_BATCHES = (1, 64, 256)

Arrays = dict[str, NDArray[Any]]


def main(words: list[str] | None = None) -> int:
    """Measure the cells that the record lacks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a bundle's folder, <variant>/<version>")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=7.5, help="when to stop (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("build/gpu_speed.json"))
    arguments = parser.parse_args(words)
    if not (arguments.bundle / "explain.onnx").is_file():
        print(f"error: {arguments.bundle}: no explain.onnx there; name the folder of one version", file=sys.stderr)
        return 2
    record: dict[str, Any] = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {"cells": {}}
    try:
        device = choose(arguments.device)
    except CudaError as error:
        device = Device(CPU)
        record["skipped"] = f"the GPU, as {error}; what follows ran on the CPU, and checks this program alone"
        print(record["skipped"])
    record |= {"environment": environment(), "device": device.provider, "gpu": gpus()}
    begun = time.monotonic()
    wanted = dict(cells(arguments.bundle, device, arguments.device))
    missing = [name for name in wanted if name not in record["cells"]]
    for name in missing:
        if time.monotonic() - begun > 60 * arguments.minutes:
            break
        measure = wanted[name]
        try:
            record["cells"][name] = measure(record["cells"])
        except Exception as error:  # noqa: BLE001 - a format or a provider may be refused in any way
            record["cells"][name] = {"refused": f"{type(error).__name__}: {one_line(error)}"[:300]}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        print(name, record["cells"][name], flush=True)
    left = sum(name not in record["cells"] for name in wanted)
    print(f"{arguments.out}: {left} of {len(wanted)} cells left{', run it again' if left else ''}")
    return 0


def cells(bundle: Path, device: Device, name: str) -> Iterator[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]]:
    """Yield each cell's name and the function that measures it, given the cells before."""
    on_gpu = device.provider == CUDA
    for kind in FORMATS:
        yield f"ceiling/{kind}", partial(_ceiling, device, kind)
    for graph in GRAPHS:
        for kind in FORMATS:
            for rows in BATCHES if on_gpu else TINY_BATCHES:
                yield f"graph/{graph}/{kind}/{rows}", partial(_graph, bundle, device, graph, kind, rows)
    for kind in ("fp32", "fp16"):
        rows = CAPTURED_ROWS if on_gpu else TINY_BATCHES[0]
        yield f"CUDA graph/{kind}/{rows}", partial(_captured, bundle, device, kind, rows)
        yield f"TensorRT/{kind}/{rows}", partial(_tensorrt, bundle, device, kind, rows)
    where = name if on_gpu else "cpu"
    for graph in ("predict", "S2 to S4"):
        for way in WAYS:
            batches = (CAPTURED_ROWS,) if way == "TensorRT" else ENGINE_BATCHES
            for rows in batches if on_gpu else TINY_BATCHES:
                yield f"engine/{graph}/{way}/{rows}", partial(engine_speed, bundle, where, graph, way, rows)
    for graph in ("predict", "S2 to S4"):
        for way in GRPC_WAYS:
            yield f"gRPC/{graph}/{way}", partial(grpc_speed, bundle, where, graph, way)


def _ceiling(device: Device, kind: str, _before: dict[str, Any]) -> dict[str, Any]:
    """Return the TFLOP/s of a matrix product, whose inputs and output stay on the device."""
    size = PRODUCT if device.provider == CUDA else TINY_PRODUCT
    element = HALF.get(kind, TensorProto.FLOAT)
    shape = [size, size]
    nodes = [helper.make_node("Cast", [name], [f"{name}h"], to=element) for name in "ab"]
    # Sixteen products of the same matrices, of which the converted copies are made once.
    nodes += [
        helper.make_node("MatMul", ["ah", "bh" if turn == 0 else f"p{turn - 1}"], [f"p{turn}"]) for turn in range(16)
    ]
    nodes.append(helper.make_node("ReduceMax", ["p15"], ["y"], keepdims=0))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "ab"]
    result = helper.make_tensor_value_info("y", element, [])
    graph = helper.make_graph(nodes, "product", values, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = open_graph(model.SerializeToString(), device, tf32=kind == "tf32")
    feeds = {name: np.full(shape, 1 / size, np.float32) for name in "ab"}
    seconds = _bound_seconds(session, feeds, device)
    return {"tflops": round(16 * 2 * size**3 / seconds / 1e12, 3)}


def _graph(bundle: Path, device: Device, graph: str, kind: str, rows: int, before: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a graph in a format for a batch."""
    content = cut((bundle / ("predict.onnx" if graph == "predict" else "explain.onnx")).read_bytes(), GRAPHS[graph])
    session = _opened(content, device, kind)
    feeds = _feeds(bundle, graph, rows)
    bound, host = _bound_seconds(session, feeds, device), _host_seconds(session, feeds)
    found: dict[str, Any] = {
        "device_ms": round(1e3 * bound, 3),
        "host_ms": round(1e3 * host, 3),
        "per_s": round(rows / bound, 1),
        "tflops": float(f"{rows * _operations(content, bundle, graph) / bound / 1e12:.3g}"),
    }
    ceiling = before.get(f"ceiling/{kind}", {}).get("tflops")
    if ceiling:
        found["of_ceiling"] = round(found["tflops"] / ceiling, 3)
    if rows in (BATCHES[0], TINY_BATCHES[0]):
        names = list(GRAPHS[graph])
        expected = open_graph(content, Device(CPU)).run(names, feeds)
        errors = zip(names, session.run(names, feeds), expected, strict=True)
        found |= {"errors": {each: float(f"{relative(one, two):.2g}") for each, one, two in errors}}
    return found


_sessions: dict[tuple[int, str], ort.InferenceSession] = {}


def _opened(content: bytes, device: Device, kind: str) -> ort.InferenceSession:
    """Return the session of a graph in a format; the last one is kept, for the other batches."""
    key = hash(content), kind
    if key not in _sessions:
        _sessions.clear()
        changed = in_half(content, kind) if kind in HALF else content
        _sessions[key] = open_graph(changed, device, tf32=kind == "tf32")
    return _sessions[key]


def open_graph(content: bytes, device: Device, tf32: bool = False, **options: str) -> ort.InferenceSession:
    """Return a session as the server opens it, with options of the CUDA provider more."""
    providers = device.providers()
    if device.provider == CUDA:
        name, usual = providers[0]
        providers[0] = name, {**usual, "use_tf32": str(int(tf32)), **options}
    made = ort.SessionOptions()
    made.log_severity_level = 3
    return ort.InferenceSession(content, made, providers=providers, enable_fallback=0)


def _feeds(bundle: Path, graph: str, rows: int) -> Arrays:
    audio = np.ascontiguousarray(batch_of(bundle, min(rows, 16))[:, : SECONDS * 16_000])
    audio = np.resize(audio, (rows, audio.shape[1]))
    feeds: Arrays = {"audio": audio, "lengths": np.full(rows, audio.shape[1])}
    return feeds if graph == "predict" else {**feeds, "target": np.full(rows, -1)}


def _bound_seconds(session: ort.InferenceSession, feeds: Arrays, device: Device, fixed: bool = False) -> float:
    """Return the median seconds of a call whose inputs are on the device, and whose outputs stay there.

    With `fixed` outputs have buffers of their own, at the same places in every call, as a CUDA graph needs them.
    """
    where = ("cuda", device.index) if device.provider == CUDA else ("cpu", 0)
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array, *where) for name, array in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    kept = []
    for output in session.get_outputs():
        if fixed:
            shape = session.run([output.name], feeds)[0].shape
            kept.append(ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *where))
            binding.bind_ortvalue_output(output.name, kept[-1])
        else:
            binding.bind_output(output.name, *where)

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return _seconds(call)


def _host_seconds(session: ort.InferenceSession, feeds: Arrays) -> float:
    return _seconds(lambda: session.run(None, feeds))


def _seconds(call: Callable[[], object]) -> float:
    call()
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < 3 or time.perf_counter() - begun < CALLS_SECONDS:
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


@cache
def _operations(content: bytes, bundle: Path, graph: str) -> float:
    """Return the floating point operations of an utterance, from the shapes that ONNX Runtime reports on the CPU."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(content, options, providers=[CPU])
        session.run(None, _feeds(bundle, graph, 1))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return operations(_shapes(events))


def _shapes(events: list[dict[str, Any]]) -> Iterator[tuple[str, list[int], list[int], list[int]]]:
    for each in events:
        if each.get("cat") == "Node" and each["name"].endswith("_kernel_time"):
            inputs, outputs = (
                [next(iter(kind.values())) for kind in each["args"][f"{way}_type_shape"]] for way in ("input", "output")
            )
            if len(inputs) > 1:
                yield each["args"]["op_name"], inputs[0], inputs[1], outputs[0]


def _captured(bundle: Path, device: Device, kind: str, rows: int, _before: dict[str, Any]) -> dict[str, Any]:
    """Return the time of `predict` as a CUDA graph, one launch for all kernels."""
    if device.provider != CUDA:
        return {"refused": "no GPU"}
    content = (bundle / "predict.onnx").read_bytes()
    content = in_half(content, kind) if kind in HALF else content
    feeds = _feeds(bundle, "predict", rows)
    session = open_graph(content, device, enable_cuda_graph="1")
    seconds = _bound_seconds(session, feeds, device, fixed=True)
    return {"device_ms": round(1e3 * seconds, 3), "per_s": round(rows / seconds, 1)}


def _tensorrt(bundle: Path, device: Device, kind: str, rows: int, _before: dict[str, Any]) -> dict[str, Any]:
    """Return the time of `predict` in TensorRT, and the seconds to build its engine and to open it from the cache."""
    if TENSORRT not in ort.get_available_providers() or device.provider != CUDA:
        return {"refused": "ONNX Runtime has no TensorRT here"}
    feeds = _feeds(bundle, "predict", rows)
    options = {
        "trt_fp16_enable": str(kind == "fp16"),
        "trt_engine_cache_enable": "True",
        "device_id": str(device.index),
        "trt_profile_min_shapes": f"audio:{rows}x{feeds['audio'].shape[1]},lengths:{rows}",
        "trt_profile_max_shapes": f"audio:{rows}x{feeds['audio'].shape[1]},lengths:{rows}",
        "trt_profile_opt_shapes": f"audio:{rows}x{feeds['audio'].shape[1]},lengths:{rows}",
    }
    opened = []
    with tempfile.TemporaryDirectory() as cache:
        providers = [(TENSORRT, options | {"trt_engine_cache_path": cache}), *device.providers()]
        for _ in range(2):
            begun = time.monotonic()
            session = ort.InferenceSession(bundle / "predict.onnx", providers=providers, enable_fallback=0)
            session.run(None, feeds)
            opened.append(round(time.monotonic() - begun, 2))
        if session.get_providers()[0] != TENSORRT:
            return {"refused": "TensorRT's libraries are not found"}
        seconds = _bound_seconds(session, feeds, device)
    return {
        "device_ms": round(1e3 * seconds, 3),
        "per_s": round(rows / seconds, 1),
        "seconds to build": opened[0],
        "seconds from the cache": opened[1],
    }


if __name__ == "__main__":
    sys.exit(main())
