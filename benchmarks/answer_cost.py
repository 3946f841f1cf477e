"""The server's processor time for an answer, by what is asked for, beside that of other checkouts.

    python -m benchmarks.answer_cost BUNDLES --variant act-da --against ../before --out RESULT.json

A server of each checkout runs on the same bundles with one thread of ONNX Runtime. One process sends calls of 3 s of
speech from the bundle, some at a time. The servers take turns every few calls, so that other work on the machine
affects all alike; figures are medians over the rounds. Processor time is that of all threads of the server process, of
which the graph itself is a part; measuring in the background is included.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.environment import environment
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub

RATE = 16_000
FLAGS = ("--port=0", "--metrics-port=0", "--probe-seconds=0", "--log-level=error", "--threads=1")
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


async def burst(stub: SpeakerIdentificationStub, request: pb.IdentifyRequest, calls: int, at_once: int) -> None:
    """Send calls, some at a time."""
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            await stub.Identify(request)  # type: ignore[misc]

    await asyncio.gather(*(work() for _ in range(at_once)))


async def measure(servers: dict[str, Server], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of an answer, by case and server."""
    options = [("grpc.max_receive_message_length", -1)]
    channels = {name: grpc.aio.insecure_channel(server.address, options) for name, server in servers.items()}
    stubs = {name: SpeakerIdentificationStub(channel) for name, channel in channels.items()}
    found: dict[str, dict[str, float]] = {}
    for case in arguments.cases or CASES:
        kind, explain = CASES[case]
        samples = audio_of(arguments.bundles, arguments.variant, kind)
        raw = pb.RawAudio(samples=samples.tobytes(), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
        model = pb.ModelSelector(variant=arguments.variant)
        request = pb.IdentifyRequest(audio=pb.Audio(raw=raw), models=[model], explain=explain)
        spent: dict[str, list[float]] = {name: [] for name in servers}
        for stub in stubs.values():
            await burst(stub, request, 2 * arguments.at_once, arguments.at_once)
        for index in range(arguments.rounds):
            order = list(servers) if index % 2 else list(servers)[::-1]
            for name in order:
                before = servers[name].processor_seconds()
                await burst(stubs[name], request, arguments.calls, arguments.at_once)
                await asyncio.sleep(SETTLE_SECONDS)
                spent[name].append((servers[name].processor_seconds() - before) / arguments.calls)
        found[case] = {name: round(1000 * statistics.median(each), 2) for name, each in spent.items()}
        print(case.ljust(20), *(f"{name} {value:7.2f} ms  " for name, value in found[case].items()), flush=True)
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
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), help="by default all")
    parser.add_argument("--flag", action="append", default=[], help="of the servers, such as --flag=--threads=2")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    checkouts = {"this": Path.cwd(), **{path.resolve().name: path.resolve() for path in arguments.against}}
    servers = {name: Server(path, arguments.bundles, arguments.flag) for name, path in checkouts.items()}
    try:
        found = asyncio.run(measure(servers, arguments))
    finally:
        for server in servers.values():
            server.close()
    result: dict[str, Any] = {**environment(), "processor_ms": found}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
