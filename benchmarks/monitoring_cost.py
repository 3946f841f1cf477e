"""Cost of measuring every answer (sound, prediction, maps, drift): requests with and without it.

    python -m benchmarks.monitoring_cost BUNDLES --variant act-da --out benchmarks/results/monitoring_cost.json

The pipeline runs in this process, without gRPC. Requests come in pairs, one without monitoring and one with it, in
alternating order, on one thread of ONNX Runtime. Processor time is that of the whole process, background threads
included; latency ends with the answer. The difference is the median over the pairs, as other work on the machine
affects both requests of a pair; the tenth percentiles are those of the least disturbed requests.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from speakerlens.measures.sound import measure_sound
from speakerlens.serving.config import Config
from speakerlens.serving.engine.admission import Admission
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Models, Selector
from speakerlens.serving.models.repository import Repository
from speakerlens.serving.pipeline.decode import RawAudio
from speakerlens.serving.pipeline.explain import ExplainOptions
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import Query
from speakerlens.serving.robustness.observer import RobustnessObserver
from speakerlens.serving.rpc.health import Health

RATE = 16_000
WARM_UP = 5


def speech(bundles: Path, variant: str, seconds: float) -> NDArray[np.float32]:
    """Return that many seconds of the bundle's probe utterances, concatenated, float32 at 16 kHz."""
    files = sorted(bundles.glob(f"{variant}/*/utterances/*.flac"))
    whole = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files])
    return np.resize(whole, round(seconds * RATE)).astype(np.float32)


class Core:
    """The pipeline over one variant."""

    def __init__(self, config: Config, codec: ThreadPoolExecutor) -> None:
        metrics = Metrics()
        self.scheduler, self.models = Scheduler("cpu"), Models(metrics)
        self._watcher = RobustnessObserver(config, metrics, self.models, self.scheduler)
        self.repository = Repository(config, self.models, self.scheduler, metrics, Health())
        self._pipeline = Pipeline(
            self.models, config, metrics, codec, self._watcher, Admission(config.max_in_flight, config.codec_threads)
        )

    async def ask(self, query: Query) -> tuple[float, float]:
        """Return the CPU and the wall-clock seconds of one request."""
        cpu, clock = time.process_time(), time.perf_counter()
        with self.models.lease(query.models) as models:
            await self._pipeline.identify(query, models)
        latency = time.perf_counter() - clock
        # One thread, and first in, first out: what was left to it is done before this.
        await asyncio.get_running_loop().run_in_executor(self._watcher._executor.thread, int)  # noqa: SLF001
        return time.process_time() - cpu, latency

    async def close(self) -> None:
        """Stop the threads."""
        await self._watcher.close()
        await self.models.close()
        self.scheduler.close()


async def compared(core: Core, query: Callable[[MonitoringScope], Query], pairs: int) -> dict[str, Any]:
    """Return medians of both kinds and of their difference, in milliseconds."""
    seconds: dict[MonitoringScope, list[tuple[float, float]]] = {
        MonitoringScope.NOTHING: [],
        MonitoringScope.ANSWER: [],
    }
    for index in range(WARM_UP + pairs):
        for monitoring in sorted(seconds, key=lambda each: each.value, reverse=bool(index % 2)):
            seconds[monitoring].append(await core.ask(query(monitoring)))
    found: dict[str, Any] = {"pairs": pairs}
    for column, name in enumerate(("processor", "latency")):
        without, with_ = ([1000 * each[column] for each in seconds[monitoring][WARM_UP:]] for monitoring in seconds)
        difference = statistics.median(b - a for a, b in zip(without, with_, strict=True))
        found[name] = {
            "without_ms": round(statistics.median(without), 3),
            "with_ms": round(statistics.median(with_), 3),
            "difference_ms": round(difference, 3),
            "share": round(difference / statistics.median(without), 4),
            "tenth_percentile_without_ms": round(float(np.percentile(without, 10)), 3),
            "tenth_percentile_with_ms": round(float(np.percentile(with_, 10)), 3),
        }
    return found


def alone(function: Callable[[], object]) -> float:
    """Return the median CPU time of 400 calls in this thread, in milliseconds."""
    spent = []
    for _ in range(400):
        started = time.thread_time()
        function()
        spent.append(1000 * (time.thread_time() - started))
    return round(statistics.median(spent), 4)


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all cases."""
    config = Config(bundles=arguments.bundles, threads=1, device="cpu")
    found: dict[str, Any] = {
        "bundle": arguments.variant,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "threads_of_onnx_runtime": 1,
        "cases": {},
    }
    with ThreadPoolExecutor(config.codec_threads) as codec:
        core = Core(config, codec)
        await core.repository.load()
        for name, length, explain, share in (
            ("predict, 3 s", 3.0, None, 1.0),
            ("explain, 3 s", 3.0, ExplainOptions(), 1.0),
            ("predict, 30 s", 30.0, None, 0.2),
        ):
            data = speech(arguments.bundles, arguments.variant, length).astype("<f4").tobytes()

            def query(
                monitoring: MonitoringScope, data: bytes = data, explain: ExplainOptions | None = explain
            ) -> Query:
                return Query(
                    audio=RawAudio(data, "float32", RATE, 1),
                    models=(Selector(arguments.variant),),
                    explain=explain,
                    monitoring=monitoring,
                )

            found["cases"][name] = await compared(core, query, max(2, round(arguments.pairs * share)))
        await core.close()
    samples = speech(arguments.bundles, arguments.variant, 3.0)
    found["hear, 3 s, alone, processor ms"] = alone(lambda: measure_sound(samples))
    return found


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", type=Path)
    parser.add_argument("--variant", default="act-da")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = json.dumps(asyncio.run(measure(arguments)), indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
