"""The server's processor time for an answer, by what is asked for, beside that of other checkouts.

    python -m benchmarks.answer_cost BUNDLES --variant act-da --against ../before --out RESULT.json
    python -m benchmarks.answer_cost BUNDLES --against ../before --cases predict --at-once 1 8 32 128 --threads 2

A server of each checkout runs on the same bundles with one thread of ONNX Runtime. One process sends calls of 3 s of
speech from the bundle, some at a time. The servers take turns every few calls, so that other work on the machine
affects all alike; figures are medians over the rounds. Processor time is that of all threads of the server process, of
which the graph itself is a part; measuring in the background is included. Answers a second and the 99th percentile of
their times are by the wall clock, with the client on the same cores.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.environment import environment
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub

RATE = 16_000
FLAGS = (
    "--port=0",
    "--metrics-port=0",
    "--probe-seconds=0",
    "--log-level=error",
    "--max-in-flight=256",
    "--queue-size=256",
)
SETTLE_SECONDS = 0.15  # measuring in the background ends
CASES: dict[str, tuple[str, pb.ExplainOptions | None]] = {
    "predict": ("speech", None),
    "predict, noise": ("noise", None),
    "explain": ("speech", pb.ExplainOptions(encoding=pb.ENCODING_UINT8)),
    "explain, float32": ("speech", pb.ExplainOptions()),
    "explain, S4": ("speech", pb.ExplainOptions(stages=[pb.STAGE_S4], encoding=pb.ENCODING_UINT8)),
    "explain, S1 to S4": (
        "speech",
        pb.ExplainOptions(stages=[pb.STAGE_S1, pb.STAGE_FUSED], encoding=pb.ENCODING_UINT8),
    ),
}


class Figures(NamedTuple):
    """Processor time of an answer and the event loop's part in ms, answers a second, 99th percentile of times in ms."""

    processor_ms: float
    loop_ms: float
    per_second: float
    p99_ms: float


class Server:
    """A server process of a checkout."""

    def __init__(self, checkout: Path, bundles: Path, flags: list[str]) -> None:
        variables = {**os.environ, "PYTHONPATH": str(checkout)}
        command = [sys.executable, "-m", "serving", "--bundles", str(bundles.resolve()), *FLAGS, *flags]
        self.process = subprocess.Popen(command, cwd=checkout, env=variables, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["grpc"]

    def processor_seconds(self) -> float:
        """Return the processor time of all its threads so far, those that ended included."""
        # Linux's clock of another process's processor time, as clock_getcpuclockid(3) makes it.
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def loop_seconds(self) -> float:
        """Return the processor time of the event loop's thread so far."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9

    def close(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait()


def audio_of(bundles: Path, variant: str, kind: str) -> NDArray[np.float32]:
    """Return 3 s, float32: utterances of the bundle in a row, or noise."""
    if kind == "noise":
        return np.random.default_rng(0).normal(0, 0.05, 3 * RATE).astype(np.float32)
    files = sorted(bundles.glob(f"{variant}/*/utterances/*.flac"))
    joined = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files])
    return np.resize(joined, 3 * RATE).astype(np.float32)


async def burst(stub: SpeakerIdentificationStub, request: pb.IdentifyRequest, calls: int, at_once: int) -> list[float]:
    """Send calls, some at a time; return the seconds of each."""
    left, taken = iter(range(calls)), []

    async def work() -> None:
        for _ in left:
            started = time.monotonic()
            await stub.Identify(request)  # type: ignore[misc]
            taken.append(time.monotonic() - started)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return taken


async def measure(servers: dict[str, Server], arguments: argparse.Namespace) -> dict[str, dict[str, Figures]]:
    """Return the medians over the rounds, by case and server."""
    options = [("grpc.max_receive_message_length", -1)]
    channels = {name: grpc.aio.insecure_channel(server.address, options) for name, server in servers.items()}
    stubs = {name: SpeakerIdentificationStub(channel) for name, channel in channels.items()}
    found: dict[str, dict[str, Figures]] = {}
    for case, at_once in itertools.product(arguments.cases or CASES, arguments.at_once):
        kind, explain = CASES[case]
        samples = audio_of(arguments.bundles, arguments.variant, kind)
        raw = pb.RawAudio(samples=samples.tobytes(), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
        model = pb.ModelSelector(variant=arguments.variant)
        request = pb.IdentifyRequest(audio=pb.Audio(raw=raw), models=[model], explain=explain)
        calls = max(arguments.calls, 2 * at_once)
        spent: dict[str, list[Figures]] = {name: [] for name in servers}
        for stub in stubs.values():
            await burst(stub, request, 2 * at_once, at_once)
        for index in range(arguments.rounds):
            order = list(servers) if index % 2 else list(servers)[::-1]
            for name in order:
                server, started = servers[name], time.monotonic()
                before, before_loop = server.processor_seconds(), server.loop_seconds()
                taken = sorted(await burst(stubs[name], request, calls, at_once))
                seconds = time.monotonic() - started
                await asyncio.sleep(SETTLE_SECONDS)
                processor, loop = server.processor_seconds() - before, server.loop_seconds() - before_loop
                p99 = taken[int(0.99 * len(taken))]
                spent[name].append(Figures(1000 * processor / calls, 1000 * loop / calls, calls / seconds, 1000 * p99))
        label = f"{case}, {at_once} at once"
        found[label] = {
            name: Figures(*(round(statistics.median(each), 2) for each in zip(*rounds, strict=True)))
            for name, rounds in spent.items()
        }
        for name, figures in found[label].items():
            print(
                f"{label:32} {name:10} {figures.processor_ms:7.2f} ms, event loop {figures.loop_ms:6.2f} ms "
                f"{figures.per_second:7.1f}/s "
                f"p99 {figures.p99_ms:7.1f} ms",
                flush=True,
            )
    for channel in channels.values():
        await channel.close()
    return found


def main() -> None:
    """Print a line for each case, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("--variant", default="act-da")
    parser.add_argument("--against", type=Path, action="append", default=[], help="another checkout; may be repeated")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=24, help="of a round")
    parser.add_argument("--at-once", type=int, nargs="+", default=[4])
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), help="by default all")
    parser.add_argument("--flag", action="append", default=[], help="of the servers, such as --flag=--threads=2")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    checkouts = {"this": Path.cwd(), **{path.resolve().name: path.resolve() for path in arguments.against}}
    flags = [f"--threads={arguments.threads}", *arguments.flag]
    servers = {name: Server(path, arguments.bundles, flags) for name, path in checkouts.items()}
    try:
        found = asyncio.run(measure(servers, arguments))
    finally:
        for server in servers.values():
            server.close()
    figures = {case: {name: each._asdict() for name, each in by.items()} for case, by in found.items()}
    result: dict[str, Any] = {**environment(), "figures": figures}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
