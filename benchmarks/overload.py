"""Goodput of a server at three times its capacity.

  python -m benchmarks.overload build/demo/bundles --variant act-da --explain --out build/overload
  python -m benchmarks.overload BUNDLES --variant v --device-seconds 0.1 --deadline 3 --out build/overload

Starts the server on the folder of bundles, and clients in another process. Capacity is measured with a fixed number of
clients, each of which sends its next request when the last is answered. Overload is three times that rate at random
times, independent of the answers, each request with a deadline. The two alternate, so that other work on the machine
affects both. Answers count in the second in which they arrive, after a run-up as long as the deadline, so that the
queue's content at the begin and at the end of a load counts for neither.

With --device-seconds the device needs that long for a second of audio (benchmarks/paced.py), like a GPU, whose time the
clients and other work on the machine do not take.

Printed, and written to OUT/overload.json:

* goodput: answers per second within their deadline, over the capacity before and after; in all rounds and in each;
* the same per second of the server's processor time, which does not depend on other work: the cost of refusing;
* kept: the share of the accepted requests (not refused before their deadline) that were answered within it;
* by status, the number of calls and their latency; refusals should be fast;
* late: delay of the client in sending a request, 99th percentile. If it is not small, the client was the bottleneck and
  the other figures are not valid.
"""

import argparse
import asyncio
import itertools
import json
import math
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, replace
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.environment import environment
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub

SAMPLE_RATE = 16_000
CALLERS = 12
SETTLE_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
# The server's own header tells its statuses from those that the client gives itself.
SERVER_HEADER = "x-request-id"


@dataclass(frozen=True)
class Load:
    """What is asked, and how: `rate` requests a second, or None for CALLERS that each wait for their answer.

    `process` is the server's, `run_up` how long the load lasts before its `seconds` are counted.
    """

    address: str
    process: int
    variant: str
    explain: bool
    lengths: tuple[float, float]
    run_up: float
    seconds: float
    rate: float | None
    deadline: float
    seed: int = 0


@dataclass(frozen=True)
class Call:
    """A request: its status, when it began and ended, whether the server refused it early, and how late it went.

    Moments are in seconds since counting began; negative before that.
    """

    code: str
    began: float
    ended: float
    refused: bool
    late: float


@dataclass(frozen=True)
class Offered:
    """What became of a load: its calls, and the server's processor time while it was counted."""

    load: Load
    calls: list[Call]
    server_seconds: float

    @property
    def answers(self) -> int:
        """Answers that came while it was counted."""
        return sum(call.code == "OK" and 0 <= call.ended < self.load.seconds for call in self.calls)

    @property
    def begun_per_second(self) -> float:
        """Requests a second."""
        return sum(call.began >= 0 for call in self.calls) / self.load.seconds

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.answers / self.load.seconds

    @property
    def per_server_second(self) -> float:
        """Answers for each second of the server's processor time."""
        return self.answers / self.server_seconds


class Client:
    """Sends a load's requests and keeps what becomes of them."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._rng = np.random.default_rng(load.seed)
        self._requests = [self._request() for _ in range(16)]
        self._calls: list[Call] = []

    def _request(self) -> pb.IdentifyRequest:
        load, rng = self._load, self._rng
        # Something that passes for speech: a pitch with overtones, that comes and goes.
        time_s = np.arange(round(rng.uniform(*load.lengths) * SAMPLE_RATE)) / SAMPLE_RATE
        pitch = 2 * np.pi * rng.uniform(100, 250) * time_s
        voiced = sum(np.sin(order * pitch) / order for order in range(1, 9)) * (np.sin(9 * time_s) > -0.5)
        samples = (4000 * voiced + rng.normal(0, 40, len(time_s))).astype("<i2")
        raw = pb.RawAudio(samples=samples.tobytes(), format=pb.SAMPLE_FORMAT_INT16, sample_rate=SAMPLE_RATE, channels=1)
        options = pb.ExplainOptions(encoding=pb.ENCODING_UINT8) if load.explain else None
        return pb.IdentifyRequest(
            audio=pb.Audio(raw=raw), models=[pb.ModelSelector(variant=load.variant)], explain=options
        )

    async def run(self) -> Offered:
        """Return the calls that were begun before the load's end."""
        load = self._load
        async with grpc.aio.insecure_channel(load.address) as channel:
            stub = SpeakerIdentificationStub(channel)
            self._zero = time.monotonic() + load.run_up
            used = asyncio.create_task(self._server_seconds())
            if load.rate is None:
                await _all([self._caller(stub, number) for number in range(CALLERS)])
            else:
                await self._arrivals(stub, load.rate)
            return Offered(load, self._calls, await used)

    async def _server_seconds(self) -> float:
        await asyncio.sleep(self._load.run_up)
        before = _processor_seconds(self._load.process)
        await asyncio.sleep(self._load.seconds)
        return _processor_seconds(self._load.process) - before

    async def _caller(self, stub: Any, number: int) -> None:
        until = self._zero + self._load.seconds
        while time.monotonic() < until:
            await self._call(stub, number, time.monotonic())
            number += CALLERS

    async def _arrivals(self, stub: Any, rate: float) -> None:
        moment, until = time.monotonic(), self._zero + self._load.seconds
        tasks: list[asyncio.Task[None]] = []
        while (moment := moment + self._rng.exponential(1 / rate)) < until:
            await asyncio.sleep(moment - time.monotonic())
            tasks.append(asyncio.create_task(self._call(stub, len(tasks), moment)))
        await asyncio.gather(*tasks)

    async def _call(self, stub: Any, number: int, moment: float) -> None:
        began = time.monotonic()
        call = stub.Identify(self._requests[number % len(self._requests)], timeout=self._load.deadline)
        code = (await call.code()).name
        ended = time.monotonic()
        by_server = any(key == SERVER_HEADER for key, _ in await call.trailing_metadata() or ())
        refused = code != "OK" and by_server and ended - began < 0.9 * self._load.deadline
        self._calls.append(Call(code, began - self._zero, ended - self._zero, refused, began - moment))


async def _all(coroutines: list[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*coroutines)


def _processor_seconds(process: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def offer(load: Load) -> Offered:
    """Summarise what became of a load."""
    return asyncio.run(Client(load).run())


def capacity(pool: Pool, load: Load) -> Offered:
    """As many callers as keep the server busy."""
    found = pool.apply(offer, (load,))
    wrong = {call.code for call in found.calls} - {"OK"}
    if not found.answers:
        raise SystemExit("error: no call was answered; let it last longer, or offer less")
    if wrong:
        raise SystemExit(f"error: callers who wait for their answer got {', '.join(sorted(wrong))}")
    return found


def rounds(capacities: list[Offered], overloads: list[Offered], figure: Callable[[Offered], float]) -> list[float]:
    """Return a figure of each overload over the mean of the capacities before and after it."""
    beside = itertools.pairwise(capacities)
    return [
        2 * figure(overload) / (figure(before) + figure(after))
        for overload, (before, after) in zip(overloads, beside, strict=True)
    ]


def summary(capacities: list[Offered], overloads: list[Offered]) -> dict[str, Any]:
    """Return the figures of a server that was overloaded between every two of `capacities`."""
    calls = [call for overload in overloads for call in overload.calls]
    accepted = [call for call in calls if not call.refused]
    kinds = defaultdict(list)
    for call in calls:
        kinds[f"{call.code}{', refused at once' if call.refused else ''}"].append(call.ended - call.began)
    ratios = rounds(capacities, overloads, lambda each: each.per_second)
    processor = rounds(capacities, overloads, lambda each: each.per_server_second)
    return {
        "load": {key: value for key, value in asdict(overloads[0].load).items() if key not in ("address", "process")},
        "capacity_per_s": [each.per_second for each in capacities],
        "offered_per_s": [each.begun_per_second for each in overloads],
        "goodput_per_s": [each.per_second for each in overloads],
        "goodput_over_capacity": statistics.mean(ratios),
        "goodput_over_capacity_by_round": ratios,
        "goodput_over_capacity_by_processor_time": statistics.mean(processor),
        "goodput_over_capacity_by_processor_time_by_round": processor,
        "server_cores": [each.server_seconds / each.load.seconds for each in (*capacities, *overloads)],
        "accepted": len(accepted),
        "kept": sum(call.code == "OK" for call in accepted) / len(accepted) if accepted else math.nan,
        "late_p99_s": float(np.percentile([call.late for call in calls], 99)),
        "statuses": {
            kind: {
                "calls": len(seconds),
                "p50_s": float(np.percentile(seconds, 50)),
                "p99_s": float(np.percentile(seconds, 99)),
            }
            for kind, seconds in sorted(kinds.items())
        },
    }


def table(figures: dict[str, Any]) -> str:
    """Return the figures as lines of text."""

    def each(key: str, form: str, times: float = 1.0) -> str:
        return ", ".join(format(times * value, form) for value in figures[key])

    goodput, processor = figures["goodput_over_capacity"], figures["goodput_over_capacity_by_processor_time"]
    lines = [
        f"capacity  {each('capacity_per_s', '.1f')} answers/s",
        f"offered   {each('offered_per_s', '.1f')} requests/s, deadline {figures['load']['deadline']:g} s",
        f"goodput   {each('goodput_per_s', '.1f')} answers/s",
        f"          {goodput:.1%} of capacity ({each('goodput_over_capacity_by_round', '.0f', 100)} %)",
        f"          {processor:.1%} by the server's processor time"
        f" ({each('goodput_over_capacity_by_processor_time_by_round', '.0f', 100)} %)",
        f"cores     {each('server_cores', '.2f')} had the server: at capacity, then overloaded",
        f"kept      {figures['kept']:.2%} of {figures['accepted']} accepted requests met their deadline",
        f"late      {1e3 * figures['late_p99_s']:.1f} ms after their moment requests were sent, p99",
    ]
    for kind, found in figures["statuses"].items():
        times = f"p50 {1e3 * found['p50_s']:8.1f} ms  p99 {1e3 * found['p99_s']:8.1f} ms"
        lines.append(f"{kind:40} {found['calls']:6}  {times}")
    return "\n".join(lines)


def measure(args: argparse.Namespace, address: str, process: int) -> dict[str, Any]:
    """Capacity and overload by turns."""
    lengths = args.shortest, args.longest
    unhurried = Load(
        address, process, args.variant, args.explain, lengths, SETTLE_SECONDS, args.seconds, None, PATIENCE_SECONDS
    )
    overloads = []
    # One process, that has imported everything before anything is measured.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        capacity(pool, replace(unhurried, seconds=SETTLE_SECONDS))  # the server measures its latencies
        capacities = [capacity(pool, unhurried)]
        for seed in range(args.rounds):
            rate = args.times * statistics.mean(each.per_second for each in capacities)
            hurried = replace(unhurried, run_up=args.deadline, rate=rate, deadline=args.deadline, seed=seed)
            overloads.append(pool.apply(offer, (hurried,)))
            capacities.append(capacity(pool, unhurried))
    return summary(capacities, overloads)


def main() -> int:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", metavar="BUNDLES", type=Path, help="folder of bundles, such as build/demo/bundles")
    parser.add_argument("--variant", required=True, help="which of them is asked")
    parser.add_argument("--explain", action="store_true", help="ask for saliency as well")
    parser.add_argument("--shortest", type=float, default=3.0, metavar="S", help="least seconds of audio (3)")
    parser.add_argument("--longest", type=float, default=8.0, metavar="S", help="most seconds of audio (8)")
    parser.add_argument("--times", type=float, default=3.0, metavar="X", help="offered load, in capacities (3)")
    parser.add_argument("--deadline", type=float, default=1.0, metavar="S", help="of each request (1)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each phase that count (10)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="how often it is overloaded (2)")
    parser.add_argument("--server", default="", metavar="FLAGS", help="further flags of the server, in one argument")
    parser.add_argument("--device-seconds", metavar="S", help="that the device needs for a second of audio")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for overload.json")
    args = parser.parse_args()
    program = ["serving"] if args.device_seconds is None else ["benchmarks.paced", args.device_seconds]
    flags = ["--bundles", str(args.bundles), "--port=0", "--metrics-port=0", "--log-level=warning"]
    command = [sys.executable, "-m", *program, *flags, *shlex.split(args.server)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            print("error: the server did not start", file=sys.stderr)
            return 1
        figures = {**environment(), "command": shlex.join(sys.argv[1:])}
        figures |= measure(args, json.loads(line)["grpc"], server.pid)
    finally:
        server.terminate()
        server.wait(60)
    print(table(figures))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "overload.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
