"""Compare the cost of the scorer with the bare graph and with `IdentifyBatch`, and measure its memory.

    python -m benchmarks.archive BUNDLE RECORDINGS [--rounds 5] [--count 200]
    python -m benchmarks.archive BUNDLE RECORDINGS --memory 100000
    python -m benchmarks.archive BUNDLE RECORDINGS --ray 2000 [--rounds 3]

BUNDLE is one bundle, RECORDINGS a folder with FLAC files. The first form scores the same recordings in turn with

* the bare graph: ONNX Runtime on windows that are cut beforehand, in the batches that the engine would form;
* a plain loop: each file whole and alone through ONNX Runtime;
* `Scorer` in this process, from WAV files, and from FLAC files, which are decoded in processes of their own;
* a server and one client with `IdentifyBatch`, 32 recordings in a call, from WAV.

Figures are seconds of processor time of all processes together, in the median over the rounds, so that other work on
the machine counts little. The last form scores N recordings by deploy/ray/score.py, with one worker and with two in
turn, and needs the extra `ray`. Writes benchmarks/results/archive.json.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import soundfile

from benchmarks.environment import environment
from benchmarks.processes import TICK, processor_seconds, resident_mib
from speakerlens import SpeakerClient
from speakerlens.measures.windows import WINDOW_SECONDS
from speakerlens.scoring import Scorer
from speakerlens.scoring.local import find_bundles
from speakerlens.serving.engine.graphs import Job
from speakerlens.serving.engine.placement import Placement
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.models.reader import read_bundle
from speakerlens.serving.pipeline.windows import WindowCutter, windowing

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "archive.json"
CALL = 32
SHORT_SECONDS = 0.6


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--memory", type=int, metavar="N", help="score N short recordings, and watch the memory")
    parser.add_argument("--ray", type=int, metavar="N", help="score N recordings with one worker of Ray, and with two")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory:
            found = {"memory": memory(arguments.bundle, arguments.recordings, arguments.memory, Path(folder))}
        elif arguments.ray:
            found = {"ray": ray(arguments, Path(folder))}
        else:
            found = {"cost": cost(arguments, Path(folder))}
    before = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
    text = json.dumps({**before, "environment": environment(), **found}, indent=1)
    arguments.out.write_text(text + "\n", "utf-8")
    print(json.dumps(found, indent=1))
    return 0


def cost(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return seconds of processor time per recording, by way."""
    flac = sorted(arguments.recordings.rglob("*.flac"))[: arguments.count]
    wav = []
    for number, file in enumerate(flac):
        samples, rate = soundfile.read(file)
        soundfile.write(folder / f"{number}.wav", samples, rate)
        wav.append(folder / f"{number}.wav")
    seconds = sum(soundfile.info(file).duration for file in wav)
    bundle = read_bundle(find_bundles(arguments.bundle)[0].folder)
    engine = Engine(bundle, Placement("cpu", 1))
    engine.warm_up()
    batches = list(_batches(wav, engine))
    session = onnxruntime.InferenceSession(bundle.folder / "predict.onnx", _one_thread())
    rows: dict[str, list[float]] = {}
    with Scorer(arguments.bundle, "cpu", 1) as scorer, _server(arguments.bundle, folder) as client:

        def graph() -> None:
            for batch in batches:
                engine.predict.compute(batch)

        ways: dict[str, Callable[[], object]] = {
            "graph": graph,
            "plain loop": lambda: _plainly(session, wav),
            "scorer, wav": lambda: list(scorer.score(wav)),
            "scorer, flac": lambda: list(scorer.score(flac)),
            "IdentifyBatch": lambda: _call(client, wav),
        }
        for _ in range(arguments.rounds + 1):  # the first warms up
            for name, way in ways.items():
                begun = processor_seconds(os.getpid())
                way()
                rows.setdefault(name, []).append(processor_seconds(os.getpid()) - begun)
    median = {name: statistics.median(values[1:]) for name, values in rows.items()}
    return {
        "bundle": bundle.name,
        "recordings": len(wav),
        "audio_s": round(seconds, 1),
        "windows": sum(len(batch.jobs) for batch in batches),
        "batches": len(batches),
        "cpu_s": {name: [round(value, 2) for value in values[1:]] for name, values in rows.items()},
        "recordings_per_cpu_s": {name: round(len(wav) / value, 1) for name, value in median.items()},
        "audio_s_per_cpu_s": {name: round(seconds / value) for name, value in median.items()},
        "share_of_graph": {name: round(median["graph"] / value, 3) for name, value in median.items()},
    }


def _plainly(session: onnxruntime.InferenceSession, files: list[Path]) -> None:
    """Score each file whole and alone, as a few lines with ONNX Runtime do."""
    for file in files:
        samples = soundfile.read(file, dtype="float32")[0]
        session.run(None, {"audio": samples[None], "lengths": np.array([len(samples)])})


def _one_thread() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def _batches(files: list[Path], engine: Engine) -> Iterator[Any]:
    """Yield the inputs of batches by length, as the engine forms them of one model's windows."""
    shape = windowing(WINDOW_SECONDS, [read_bundle(engine._bundle.folder)])  # noqa: SLF001 - of the same bundle
    windows = []
    for file in files:
        cutter = WindowCutter(shape)
        samples = soundfile.read(file, dtype="float32")[0]
        windows += [*cutter.feed(samples), *cutter.finish()]
    buckets = engine.predict.buckets
    batch: list[Job] = []
    for window in sorted(windows, key=lambda each: len(each.samples)):
        length = buckets.length(len(window.samples))
        if batch and (len(batch) == buckets.sizes[-1] or (len(batch) + 1) * length > buckets.batch_samples):
            yield engine.predict.prepare(batch)
            batch = []
        batch.append(Job(window.samples))
    yield engine.predict.prepare(batch)


@contextlib.contextmanager
def _server(bundle: Path, folder: Path) -> Iterator[SpeakerClient]:
    root = folder / "bundles"
    found = find_bundles(bundle)[0]
    (root / found.variant).mkdir(parents=True)
    (root / found.variant / found.folder.name).symlink_to(found.folder.resolve())
    words = [sys.executable, "-m", "speakerlens", "serve", "--bundles", str(root), "--port=0", "--no-metrics"]
    with subprocess.Popen(
        [*words, "--threads=1", "--probe-seconds=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["grpc"]
        with SpeakerClient(address, timeout=600) as client:
            yield client
        process.terminate()


def _call(client: SpeakerClient, files: list[Path]) -> None:
    for start in range(0, len(files), CALL):
        answers = client.identify_batch([file.read_bytes() for file in files[start : start + CALL]])
        assert not any(isinstance(each, grpc.RpcError) for each in answers)


def memory(bundle: Path, recordings: Path, count: int, folder: Path) -> dict[str, Any]:
    """Return the resident memory of the command and of its worker, in MiB, while they score short recordings."""
    files = []
    for number, file in enumerate(sorted(recordings.rglob("*.flac"))[:100]):
        samples, rate = soundfile.read(file, frames=16_000)
        soundfile.write(folder / f"{number}.wav", samples[: round(SHORT_SECONDS * rate)], rate)
        files.append(folder / f"{number}.wav")
    listed, out = folder / "list", folder / "x.parquet"
    listed.write_text("".join(f"{files[number % len(files)]}\n" for number in range(count)))
    words = ["score", str(listed), "--bundle", str(bundle), "--out", str(out), "--workers=1", "--device=cpu"]
    seen: list[tuple[int, float, float]] = []
    begun = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "speakerlens", *words], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            parts = len(list((folder / "x.parquet.work" / "parts").glob("[0-9]*")))
            workers = [resident_mib(pid) for pid in _children(process.pid)]
            if parts and (not seen or parts > seen[-1][0]):
                seen.append((parts, resident_mib(process.pid), max(workers, default=0.0)))
                print(*(round(each) for each in seen[-1]), file=sys.stderr, flush=True)
            time.sleep(0.5)
    steps = [seen[min(len(seen) - 1, round(share * (len(seen) - 1)))] for share in np.linspace(0, 1, 11)]
    return {
        "recordings": count,
        "exit_code": process.returncode,
        "seconds": round(time.monotonic() - begun),
        "parts_command_worker_mib": [(parts, round(one), round(other)) for parts, one, other in steps],
    }


def ray(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what one and two workers of Ray take for the same recordings, by the clock and of the processor."""
    files = sorted(arguments.recordings.rglob("*.flac"))[: arguments.count]
    listed = folder / "list"
    listed.write_text("".join(f"{files[number % len(files)]}\n" for number in range(arguments.ray)))
    rounds: dict[str, list[dict[str, float]]] = {"1": [], "2": []}
    for number in range(arguments.rounds):
        for workers, runs in rounds.items():
            out = folder / f"{number}-{workers}"
            words = [str(ROOT / "deploy" / "ray" / "score.py"), str(listed), str(arguments.bundle), str(out), workers]
            begun = time.monotonic()
            with subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL) as process:
                used = _used_until_end(process)
            if process.returncode:
                raise RuntimeError(f"deploy/ray/score.py ended with {process.returncode}")
            seconds = {"clock_s": time.monotonic() - begun, **used}
            runs.append({name: round(value, 1) for name, value in seconds.items()})
            print(workers, runs[-1], file=sys.stderr, flush=True)
    medians = {name: statistics.median(run["scoring_s"] for run in runs) for name, runs in rounds.items()}
    return {
        "recordings": arguments.ray,
        "rounds_by_workers": rounds,
        "recordings_per_s": {name: round(arguments.ray / value, 1) for name, value in medians.items()},
        "two_over_one": round(medians["1"] / medians["2"], 2),
    }


def _used_until_end(process: "subprocess.Popen[bytes]") -> dict[str, float]:
    """Return the processor time of a job of Ray, of its workers in it, and how long these computed, by the clock."""
    used: dict[int, float] = {}
    workers: set[int] = set()
    begun = ended = time.monotonic()
    while process.poll() is None:
        waiting = [process.pid]
        while waiting:
            pid = waiting.pop()
            waiting += _children_of_all(pid)
            with contextlib.suppress(OSError):
                values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                now = sum(map(int, values[11:13])) / TICK
                if "ray::MapWorker" in Path(f"/proc/{pid}/cmdline").read_text():
                    if pid not in workers:
                        begun = time.monotonic() if not workers else begun
                        workers.add(pid)
                    if now > used.get(pid, 0.0):
                        ended = time.monotonic()
                used[pid] = now
        time.sleep(0.2)
    return {
        "cpu_s": sum(used.values()),
        "cpu_of_workers_s": sum(used[pid] for pid in workers),
        "scoring_s": ended - begun,
    }


def _children_of_all(pid: int) -> list[int]:
    """Return the children of all threads of a process."""
    with contextlib.suppress(OSError):
        threads = [each.name for each in Path(f"/proc/{pid}/task").iterdir()]
        return [
            int(child) for each in threads for child in Path(f"/proc/{pid}/task/{each}/children").read_text().split()
        ]
    return []


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


if __name__ == "__main__":
    sys.exit(main())
