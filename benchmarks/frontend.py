"""Limit of the front-end process: the server's cost of a call with a network that costs nothing.

    python -m benchmarks.frontend --seconds 5

A toy bundle answers 3 s of float32 audio; one process of clients keeps 1, 8 and 32 calls in flight. Calls per second
depend on the clients and on other work on the machine; the server's processor time per call hardly does. All of asyncio
and nearly all of gRPC's Python code run in the main thread, so the reciprocal of its time per call is the maximum
rate of one front-end process.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from tests.serving import toy
from tests.serving.harness import ServerProcess, raw, voice

IN_FLIGHT = (1, 8, 32)
TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(process: int) -> tuple[float, float]:
    """Of the main thread, and of all threads."""
    times = {task.name: _ticks(task / "stat") / TICKS for task in Path(f"/proc/{process}/task").iterdir()}
    return times[str(process)], sum(times.values())


def _ticks(stat: Path) -> int:
    fields = stat.read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def load(address: str, in_flight: int, seconds: float) -> list[float]:
    """Keep a number of calls in flight for a time, and return their durations in seconds."""
    request = pb.IdentifyRequest(audio=raw(voice(3.0)), top_k=1)
    durations: list[float] = []
    end = time.monotonic() + seconds

    async def ask(stub: SpeakerIdentificationStub) -> None:
        while time.monotonic() < end:
            started = time.monotonic()
            await stub.Identify(request)  # type: ignore[misc]
            durations.append(time.monotonic() - started)

    async with grpc.aio.insecure_channel(address) as channel:
        stub = SpeakerIdentificationStub(channel)
        await asyncio.gather(*(ask(stub) for _ in range(in_flight)))
    return durations


def measure(server: ServerProcess, in_flight: int, seconds: float) -> str:
    """One line of the table."""
    before = processor_seconds(server.process.pid)
    command = [sys.executable, "-m", "benchmarks.frontend", "--ask", server.ready["grpc"]]
    command += ["--seconds", str(seconds), "--in-flight", str(in_flight)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    main, everything = (after - each for after, each in zip(processor_seconds(server.process.pid), before, strict=True))
    durations = [float(line) for line in answer.stdout.split()]
    calls = len(durations)
    return (
        f"{in_flight:9} {calls / seconds:8.0f} {1000 * statistics.median(durations):9.1f} "
        f"{1000 * main / calls:13.2f} {1000 * everything / calls:12.2f} {calls / main:17.0f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number of calls in flight")
    parser.add_argument("--ask", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--in-flight", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        print(*asyncio.run(load(arguments.ask, arguments.in_flight, arguments.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        toy.write_bundle(Path(folder), "toy", 1)
        with ServerProcess(Path(folder), "--log-level=warning", "--threads=1") as server:
            asyncio.run(load(server.ready["grpc"], 8, 1.0))
            print("in flight  calls/s median ms  main ms/call  all ms/call  most calls/s here")
            for in_flight in IN_FLIGHT:
                print(measure(server, in_flight, arguments.seconds))


if __name__ == "__main__":
    main()
