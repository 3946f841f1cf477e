"""The speed of the server's ways to compute on a GPU: its engine from samples to results, and calls through gRPC.

A way is a set of the server's flags. What a machine lacks, such as TensorRT or a second GPU, is said in the cell.
"""

import tempfile
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peers.load import send
from benchmarks.peers.networks import RATE, speech
from benchmarks.peers.servers import ours
from speakerlens.serving.config import Config
from speakerlens.serving.engine.buckets import BatchLimits
from speakerlens.serving.engine.gpu import AGREEING
from speakerlens.serving.engine.graphs import EXPLAIN_SPECS, PREDICT_SPEC, GraphSpec, Job
from speakerlens.serving.engine.placement import find_gpus
from speakerlens.serving.engine.session import GraphSession
from speakerlens.serving.errors import StartupError
from speakerlens.serving.models.loader import choose_precision, fit_to_device, placement_of
from speakerlens.serving.models.reader import read_bundle

SECONDS = 2
CALLS_SECONDS = 0.4
CALLERS, PER_CALL = 8, 64
# The flags of each way; a folder is put in for ENGINES.
ENGINES = "ENGINES"
WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "plain": {},
    "two instances": {"instances": "2"},
    "CUDA graphs": {"cuda_graphs": True},
    "TensorRT": {"tensorrt": ENGINES},
    "all GPUs": {"device": "cuda:all"},
    "fp16": {"precision": "fp16"},
}
# A server would build engines for all graphs, for longer than a run may last.
GRPC_WAYS = tuple(way for way in WAYS if way != "TensorRT")
SPECS: Final[Mapping[str, GraphSpec[Any, Any]]] = {"predict": PREDICT_SPEC, "S2 to S4": EXPLAIN_SPECS["s2"]}


def needs_gpu(device: str, way: str) -> bool:
    """Return whether a way cannot be tried on a device."""
    return device == "cpu" and way in ("CUDA graphs", "TensorRT", "all GPUs")


def configured(device: str, way: str, folder: Path) -> Config:
    """Return the server's configuration of a way, with a folder for TensorRT's engines.

    Raises:
        StartupError: the machine lacks what it needs, such as a second GPU.
    """
    if way == "all GPUs" and len(find_gpus("cuda:all")) == 1:
        raise StartupError("there is one GPU")
    flags = {"device": device, **WAYS[way]}
    if "tensorrt" in flags:
        flags["tensorrt"] = folder
    return fit_to_device(Config(**flags))


def engine_speed(bundle: Path, device: str, graph: str, way: str, rows: int, before: dict[str, Any]) -> dict[str, Any]:
    """Return the time of a batch in the server's engine, and its speed with the next prepared meanwhile."""
    if needs_gpu(device, way):
        return {"refused": "no GPU"}
    with tempfile.TemporaryDirectory() as folder:
        config = configured(device, way, Path(folder))
        placement, read = placement_of(config), read_bundle(bundle)
        read = replace(read, precision=choose_precision(read, config.precision, on_gpu=device != "cpu"))
        begun = time.monotonic()
        session: GraphSession[Any, Any] = GraphSession(
            SPECS[graph], read, placement, BatchLimits(rows, longest_seconds=SECONDS)
        )
        samples = speech(bundle, SECONDS)[: SECONDS * RATE]
        jobs = [Job(np.roll(samples, number)) for number in range(rows)]
        with ThreadPoolExecutor(placement.instances) as pool:
            for _ in range(AGREEING + 1):
                # Each thread has CUDA graphs of its own, as the server's.
                for done in [pool.submit(session.compute, session.prepare(jobs)) for _ in range(placement.instances)]:
                    done.result()
            opened = time.monotonic() - begun
            one = _alone(session, jobs, pool)
            together = _together(session, jobs, pool, placement.instances)
    found = {
        "provider": session.provider,
        "seconds to open": round(opened, 2),
        "batch_ms": round(1e3 * one, 3),
        "per_s": round(rows / together, 1),
    }
    captured = [gpu.failed or gpu.captures for gpu in session.devices]
    found |= {"CUDA graphs": captured} if way == "CUDA graphs" else {}
    return _compared(found, before, graph, way)


def _alone(session: GraphSession[Any, Any], jobs: list[Job], pool: ThreadPoolExecutor) -> float:
    """Return the median seconds of a batch, prepared and computed in turn."""
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < 3 or time.perf_counter() - begun < CALLS_SECONDS:
        started = time.perf_counter()
        pool.submit(session.compute, session.prepare(jobs)).result()
        found.append(time.perf_counter() - started)
    return float(np.median(found))


def _together(session: GraphSession[Any, Any], jobs: list[Job], pool: ThreadPoolExecutor, instances: int) -> float:
    """Return the mean seconds of a batch where the next is prepared while all instances compute."""
    waiting: deque[Future[Any]] = deque()
    begun, done = time.perf_counter(), 0
    while done < 3 or time.perf_counter() - begun < CALLS_SECONDS:
        waiting.append(pool.submit(session.compute, session.prepare(jobs)))
        if len(waiting) > instances:
            waiting.popleft().result()
            done += 1
    while waiting:
        waiting.popleft().result()
        done += 1
    return (time.perf_counter() - begun) / done


def grpc_speed(bundle: Path, device: str, graph: str, way: str, before: dict[str, Any]) -> dict[str, Any]:
    """Return utterances a second of calls with many utterances each, and their share of the bare graph's speed."""
    from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb  # noqa: PLC0415

    if needs_gpu(device, way):
        return {"refused": "no GPU"}
    per_call, callers = (2, 1) if device == "cpu" else (PER_CALL, CALLERS)
    explain = None if graph == "predict" else pb.ExplainOptions(encoding=pb.ENCODING_UINT8)
    with tempfile.TemporaryDirectory() as folder:
        flags = [] if device != "cpu" else [f"--max-batch={per_call}"]
        for name, value in {"device": device, **WAYS[way]}.items():
            flag = "--" + name.replace("_", "-")
            flags.append(flag if value is True else f"{flag}={folder if value == ENGINES else value}")
        configured(device, way, Path(folder))  # says what is missing
        with ours([bundle], flags) as served:
            target = served.batch_target(bundle, explain, SECONDS, per_call)
            send(target, callers, callers)
            load = send(target, callers, 4 * callers)
    if load.errors:
        return {"refused": load.errors[0]}
    return _compared({"per_s": round(per_call * len(load.latencies) / load.seconds, 1)}, before, graph, way)


def _compared(found: dict[str, Any], before: dict[str, Any], graph: str, way: str) -> dict[str, Any]:
    """Return figures with their share of the speed of the bare graph in the same format, at its best batch."""
    prefix = f"graph/{graph}/{'fp16' if way == 'fp16' else 'fp32'}/"
    rates = [cell["per_s"] for name, cell in before.items() if name.startswith(prefix) and "per_s" in cell]
    return found | {"of_graph": round(found["per_s"] / max(rates), 3) if rates else None}
