"""What becomes of a server that is offered three times what it can do.

  python benchmarks/overload.py build/demo/bundles --variant act-da --out build/overload

Starts the real server on the folder of bundles, and clients in a process of their own. First their number is fixed and
each asks again when it is answered: what is answered in a second is the capacity. Then requests come at three times
that rate, at random moments, whether earlier ones are answered or not, each with a deadline. Then capacity again, and
so on, so that whatever else the machine does falls on both.

Printed, and written to OUT/overload.json:

* goodput: answers within their deadline, a second, over the mean capacity;
* kept: of the requests that were accepted, that is not refused before their deadline, the share answered within it;
* by status, how many there were and how long they took; refusals should take next to nothing;
* late: how long after its moment the client sent a request, at the 99th percentile. If that is not small, the client
  was the bottleneck, and the other figures mean nothing.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from protos.speakerlens.v1 import identification_pb2 as pb
from protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub

MODEL_RATE = 16_000
CALLERS = 12
SETTLE_SECONDS = 2.0
# The server's own header tells its statuses from those that the client gives itself.
SERVER_HEADER = "x-request-id"


@dataclass(frozen=True)
class Load:
    """What is asked, and how: `rate` requests a second, or None for CALLERS that each wait for their answer."""

    address: str
    variant: str
    explain: bool
    lengths: tuple[float, float]
    seconds: float
    rate: float | None
    deadline: float
    seed: int = 0


@dataclass(frozen=True)
class Call:
    """A request: status, seconds it took, whether the server refused it before its deadline, and how late it went."""

    code: str
    seconds: float
    refused: bool
    late: float


class Client:
    """Sends a load's requests and keeps what becomes of them."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._rng = np.random.default_rng(load.seed)
        self._requests = [self._request() for _ in range(16)]
        self.calls: list[Call] = []

    def _request(self) -> pb.IdentifyRequest:
        load, rng = self._load, self._rng
        # Something that passes for speech: a pitch with overtones, that comes and goes.
        time_s = np.arange(round(rng.uniform(*load.lengths) * MODEL_RATE)) / MODEL_RATE
        pitch = 2 * np.pi * rng.uniform(100, 250) * time_s
        voiced = sum(np.sin(order * pitch) / order for order in range(1, 9)) * (np.sin(9 * time_s) > -0.5)
        samples = (4000 * voiced + rng.normal(0, 40, len(time_s))).astype("<i2")
        raw = pb.RawAudio(samples=samples.tobytes(), format=pb.SAMPLE_FORMAT_INT16, sample_rate=MODEL_RATE, channels=1)
        options = pb.ExplainOptions(encoding=pb.ENCODING_UINT8) if load.explain else None
        return pb.IdentifyRequest(
            audio=pb.Audio(raw=raw), models=[pb.ModelSelector(variant=load.variant)], explain=options
        )

    async def run(self) -> list[Call]:
        """The calls that were begun within the load's seconds."""
        async with grpc.aio.insecure_channel(self._load.address) as channel:
            stub = SpeakerIdentificationStub(channel)
            if self._load.rate is None:
                await _all([self._caller(stub, number) for number in range(CALLERS)])
            else:
                await self._arrivals(stub, self._load.rate)
        return self.calls

    async def _caller(self, stub: Any, number: int) -> None:
        until = time.monotonic() + self._load.seconds
        while time.monotonic() < until:
            await self._call(stub, number, time.monotonic())
            number += CALLERS

    async def _arrivals(self, stub: Any, rate: float) -> None:
        moment = time.monotonic()
        until = moment + self._load.seconds
        tasks: list[asyncio.Task[None]] = []
        while (moment := moment + self._rng.exponential(1 / rate)) < until:
            await asyncio.sleep(moment - time.monotonic())
            tasks.append(asyncio.create_task(self._call(stub, len(tasks), moment)))
        await asyncio.gather(*tasks)

    async def _call(self, stub: Any, number: int, moment: float) -> None:
        started = time.monotonic()
        call = stub.Identify(self._requests[number % len(self._requests)], timeout=self._load.deadline)
        code = (await call.code()).name
        seconds = time.monotonic() - started
        by_server = any(key == SERVER_HEADER for key, _ in await call.trailing_metadata() or ())
        refused = code != "OK" and by_server and seconds < 0.9 * self._load.deadline
        self.calls.append(Call(code, seconds, refused, started - moment))


async def _all(coroutines: list[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*coroutines)


def offer(load: Load) -> list[Call]:
    """A load from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_offer, (load,))


def _offer(load: Load) -> list[Call]:
    return asyncio.run(Client(load).run())


def capacity(load: Load) -> float:
    """Answers a second."""
    calls = offer(load)
    wrong = {call.code for call in calls} - {"OK"}
    if wrong:
        raise SystemExit(f"error: callers who wait for their answer got {', '.join(sorted(wrong))}")
    return len(calls) / load.seconds


def summary(calls: list[Call], load: Load, capacities: list[float]) -> dict[str, Any]:
    """The figures of an overloaded server."""
    able = sum(capacities) / len(capacities)
    answered = [call for call in calls if call.code == "OK"]
    accepted = [call for call in calls if not call.refused]
    kinds = defaultdict(list)
    for call in calls:
        kinds[f"{call.code}{', refused at once' if call.refused else ''}"].append(call.seconds)
    return {
        "load": asdict(load),
        "capacity_per_s": capacities,
        "offered_per_s": len(calls) / load.seconds,
        "goodput_per_s": len(answered) / load.seconds,
        "goodput_over_capacity": len(answered) / load.seconds / able,
        "accepted": len(accepted),
        "kept": len(answered) / len(accepted) if accepted else math.nan,
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
    """The figures for people."""
    goodput, share = figures["goodput_per_s"], 100 * figures["goodput_over_capacity"]
    capacities = ", ".join(f"{each:.1f}" for each in figures["capacity_per_s"])
    lines = [
        f"capacity  {capacities} answers/s",
        f"offered   {figures['offered_per_s']:8.1f} requests/s, deadline {figures['load']['deadline']:g} s",
        f"goodput   {goodput:8.1f} answers/s: {share:.1f} % of capacity",
        f"kept      {100 * figures['kept']:8.2f} % of {figures['accepted']} accepted requests met their deadline",
        f"late      {1e3 * figures['late_p99_s']:8.1f} ms after their moment requests were sent, p99",
    ]
    for kind, each in figures["statuses"].items():
        times = f"p50 {1e3 * each['p50_s']:8.1f} ms  p99 {1e3 * each['p99_s']:8.1f} ms"
        lines.append(f"{kind:40} {each['calls']:6}  {times}")
    return "\n".join(lines)


def measure(args: argparse.Namespace, address: str) -> dict[str, Any]:
    """Capacity and overload by turns."""
    lengths = args.shortest, args.longest
    load = Load(address, args.variant, args.explain, lengths, args.seconds, None, deadline=60.0)
    capacity(replace(load, seconds=SETTLE_SECONDS))  # the server learns how long computing takes
    capacities, calls = [capacity(load)], []
    for seed in range(args.rounds):
        rate = args.times * sum(capacities) / len(capacities)
        calls += offer(replace(load, rate=rate, deadline=args.deadline, seed=seed))
        capacities.append(capacity(load))
    over = replace(load, rate=rate, deadline=args.deadline, seconds=args.rounds * args.seconds)
    return summary(calls, over, capacities)


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
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each phase (10)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="how often it is overloaded (2)")
    parser.add_argument("--server", default="", metavar="FLAGS", help="further flags of the server, in one argument")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for overload.json")
    args = parser.parse_args()
    flags = ["--bundles", str(args.bundles), "--port=0", "--metrics-port=0", "--log-level=warning"]
    command = [sys.executable, "-m", "serving", *flags, *shlex.split(args.server)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            print("error: the server did not start", file=sys.stderr)
            return 1
        figures = measure(args, json.loads(line)["grpc"])
    finally:
        server.terminate()
        server.wait(60)
    print(table(figures))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "overload.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
