"""Goodput of a server at several times its capacity, and after it.

  python -m benchmarks.overload build/demo/bundles --variant act-da --out build/overload
  python -m benchmarks.overload BUNDLES --variant v --deadlines 3 --device-seconds 0.1 --out build/overload

Starts the server on the folder of bundles, and clients in another process. Every combination of kind (predict or
explain), range of lengths, deadline and load is measured in rounds. Capacity is measured with a fixed number of
clients, each of which sends its next request when the last is answered. Overload is a multiple of that rate at random
times, independent of the answers, each request with a deadline. The two alternate, so that other work on the machine
affects both. Answers count in the second in which they arrive, after a run-up as long as the deadline, so that the
queue's content at the begin and at the end of a load counts for neither. When an overload ends, the fixed number of
clients starts at once.

With --device-seconds the device needs that long for a second of audio (benchmarks/paced.py), like a GPU, whose time the
clients and other work on the machine do not take.

Printed, one line for each combination, and written with more figures to OUT/overload.json:

* capacity and goodput in answers per second; goodput over the capacity before and after;
* by core: the same per second of the server's processor time, which does not depend on other work on the machine: it is
  the share of the processor time that goes into answers and not into refusals;
* kept: the share of the accepted requests (not refused before their deadline) that were answered within it;
* refused: latency of refusals, 99th percentile, seen by the client;
* late: delay of the client in sending a request, 99th percentile. Where it is not small, so is the share of it in the
  latency of refusals, and the client may have been the bottleneck;
* after: answers per second from 2 to 4 s after the end of the load, over capacity.
"""

import argparse
import asyncio
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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.environment import environment
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb

SAMPLE_RATE = 16_000
CALLERS = 12
SETTLE_SECONDS = 2.0
UNHURRIED_SECONDS = 60.0
# After an overload, answers count from when to when.
RECOVERY = (2.0, 4.0)
METHOD = "/speakerlens.v1.SpeakerIdentification/Identify"
# The server's own header tells its statuses from those that the client gives itself.
SERVER_HEADER = "x-request-id"
# Where it is allowed, the client comes before other work: a late client offers less than it should.
CLIENT_NICENESS = -10


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
    seconds: float
    run_up: float = SETTLE_SECONDS
    rate: float | None = None
    deadline: float = UNHURRIED_SECONDS
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
    """What became of a load: its calls, the server's processor time while it was counted, and calls after it."""

    load: Load
    calls: list[Call]
    server_seconds: float
    after: list[Call] = field(default_factory=list)

    @property
    def answers(self) -> int:
        """Answers that came while it was counted."""
        return _answers(self.calls, 0, self.load.seconds)

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

    @property
    def after_per_second(self) -> float:
        """Answers a second in the time RECOVERY after the load."""
        start, stop = (self.load.seconds + moment for moment in RECOVERY)
        return _answers(self.after, start, stop) / (stop - start)


def _answers(calls: list[Call], start: float, stop: float) -> int:
    return sum(call.code == "OK" and start <= call.ended < stop for call in calls)


class Client:
    """Sends a load's requests and keeps what becomes of them."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._rng = np.random.default_rng(load.seed)
        self._requests = [self._request() for _ in range(16)]

    def _request(self) -> bytes:
        load, rng = self._load, self._rng
        # Something that passes for speech: a pitch with overtones, that comes and goes.
        time_s = np.arange(round(rng.uniform(*load.lengths) * SAMPLE_RATE)) / SAMPLE_RATE
        pitch = 2 * np.pi * rng.uniform(100, 250) * time_s
        voiced = sum(np.sin(order * pitch) / order for order in range(1, 9)) * (np.sin(9 * time_s) > -0.5)
        samples = (4000 * voiced + rng.normal(0, 40, len(time_s))).astype("<i2")
        raw = pb.RawAudio(samples=samples.tobytes(), format=pb.SAMPLE_FORMAT_INT16, sample_rate=SAMPLE_RATE, channels=1)
        options = pb.ExplainOptions(encoding=pb.ENCODING_UINT8) if load.explain else None
        request = pb.IdentifyRequest(
            audio=pb.Audio(raw=raw), models=[pb.ModelSelector(variant=load.variant)], explain=options
        )
        return request.SerializeToString()

    async def run(self) -> Offered:
        """Return the calls that were begun before the load's end."""
        load = self._load
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(load.address, options) as channel:
            self._identify: Any = channel.unary_unary(METHOD)
            self._zero = time.monotonic() + load.run_up
            used = asyncio.create_task(self._server_seconds())
            if load.rate is None:
                return Offered(load, await self._callers(load.seconds), await used)
            calls, after = await asyncio.gather(self._arrivals(load.rate), self._recovery())
            return Offered(load, calls, await used, after)

    async def _server_seconds(self) -> float:
        await asyncio.sleep(self._load.run_up)
        before = _processor_seconds(self._load.process)
        await asyncio.sleep(self._load.seconds)
        return _processor_seconds(self._load.process) - before

    async def _recovery(self) -> list[Call]:
        await asyncio.sleep(self._load.run_up + self._load.seconds)
        return await self._callers(self._load.seconds + RECOVERY[1])

    async def _callers(self, until: float) -> list[Call]:
        calls: list[Call] = []

        async def ask(number: int) -> None:
            while time.monotonic() < self._zero + until:
                calls.append(await self._call(number, time.monotonic(), UNHURRIED_SECONDS))
                number += CALLERS

        await asyncio.gather(*map(ask, range(CALLERS)))
        return calls

    async def _arrivals(self, rate: float) -> list[Call]:
        moment, until = time.monotonic(), self._zero + self._load.seconds
        tasks: list[asyncio.Task[Call]] = []
        while (moment := moment + self._rng.exponential(1 / rate)) < until:
            await asyncio.sleep(moment - time.monotonic())
            tasks.append(asyncio.create_task(self._call(len(tasks), moment, self._load.deadline)))
        return await asyncio.gather(*tasks)

    async def _call(self, number: int, moment: float, deadline: float) -> Call:
        began = time.monotonic()
        call = self._identify(self._requests[number % len(self._requests)], timeout=deadline)
        code = (await call.code()).name
        ended = time.monotonic()
        by_server = any(key == SERVER_HEADER for key, _ in await call.trailing_metadata() or ())
        refused = code != "OK" and by_server and ended - began < 0.9 * deadline
        return Call(code, began - self._zero, ended - self._zero, refused, began - moment)


def _processor_seconds(process: int) -> float:
    """User and system time of a process and of its children so far."""
    total = 0.0
    for name in (process, *_children(process)):
        with suppress(OSError):
            fields = Path(f"/proc/{name}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _children(process: int) -> list[int]:
    paths = Path(f"/proc/{process}/task").glob("*/children")
    found = [int(name) for path in paths for name in path.read_text(encoding="utf-8").split()]
    return found + [grandchild for child in found for grandchild in _children(child)]


def prefer_client() -> None:
    """Give this process more of the machine than others, where that is allowed."""
    with suppress(OSError):
        os.nice(CLIENT_NICENESS)


def offer(load: Load) -> Offered:
    """Return what became of a load."""
    return asyncio.run(Client(load).run())


def capacity(pool: Pool, load: Load) -> Offered:
    """Return what became of as many callers as keep the server busy."""
    found = pool.apply(offer, (load,))
    wrong = {call.code for call in found.calls} - {"OK"}
    if not found.answers:
        raise SystemExit("error: no call was answered; let it last longer, or offer less")
    if wrong:
        raise SystemExit(f"error: callers who wait for their answer got {', '.join(sorted(wrong))}")
    return found


def ratios(capacities: list[Offered], overloads: list[Offered], figure: Callable[[Offered], float]) -> list[float]:
    """Return a figure of each overload over the mean of the capacities before and after it."""
    pairs = zip(capacities, capacities[1:], overloads, strict=False)
    return [2 * figure(overload) / (figure(before) + figure(after)) for before, after, overload in pairs]


def summary(capacities: list[Offered], overloads: list[Offered]) -> dict[str, Any]:
    """Return the figures of a server that was overloaded between every two of `capacities`."""
    calls = [call for overload in overloads for call in overload.calls]
    accepted = [call for call in calls if not call.refused]
    kinds = defaultdict(list)
    for call in calls:
        kinds[f"{call.code}{', refused at once' if call.refused else ''}"].append(call.ended - call.began)
    refusals = [call.ended - call.began for call in calls if call.refused]
    goodput = ratios(capacities, overloads, lambda each: each.per_second)
    by_core = ratios(capacities, overloads, lambda each: each.per_server_second)
    known = [each.per_second for each in capacities]
    after = [each.after_per_second / max(1e-9, before) for each, before in zip(overloads, known, strict=False)]
    return {
        "load": {key: value for key, value in asdict(overloads[0].load).items() if key not in ("address", "process")},
        "capacity_per_s": known,
        "offered_per_s": [each.begun_per_second for each in overloads],
        "goodput_per_s": [each.per_second for each in overloads],
        "goodput_over_capacity": statistics.mean(goodput),
        "goodput_over_capacity_by_round": goodput,
        "goodput_over_capacity_by_processor_time": statistics.mean(by_core),
        "goodput_over_capacity_by_processor_time_by_round": by_core,
        "after_over_capacity": statistics.mean(after),
        "server_cores": [each.server_seconds / each.load.seconds for each in (*capacities, *overloads)],
        "accepted": len(accepted),
        "kept": sum(call.code == "OK" for call in accepted) / len(accepted) if accepted else math.nan,
        "refused": len(refusals),
        "refused_p99_s": _percentile(refusals, 99),
        "late_p99_s": _percentile([call.late for call in calls], 99),
        "statuses": {
            kind: {"calls": len(seconds), "p50_s": _percentile(seconds, 50), "p99_s": _percentile(seconds, 99)}
            for kind, seconds in sorted(kinds.items())
        },
    }


def _percentile(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else math.nan


HEADER = (
    "kind     seconds    deadline  load   capacity  goodput  of capacity  by core    kept  refused p50, p99 ms  "
    "late p99 ms  after"
)


def row(figures: dict[str, Any]) -> str:
    """Return the figures of a combination as one line below HEADER."""
    load, rounds = figures["load"], statistics.mean
    shortest, longest = load["lengths"]
    before = rounds(figures["capacity_per_s"])
    refusals = [each["p50_s"] for kind, each in figures["statuses"].items() if kind.endswith("at once")]
    return (
        f"{'explain' if load['explain'] else 'predict':8} {f'{shortest:g}-{longest:g}':10} {load['deadline']:6g} s "
        f"{rounds(figures['offered_per_s']) / before:5.1f} {before:10.1f} {rounds(figures['goodput_per_s']):8.1f} "
        f"{figures['goodput_over_capacity']:12.0%} {figures['goodput_over_capacity_by_processor_time']:8.0%} "
        f"{figures['kept']:7.1%} {1e3 * min(refusals, default=math.nan):12.1f} {1e3 * figures['refused_p99_s']:7.1f} "
        f"{1e3 * figures['late_p99_s']:12.1f} {figures['after_over_capacity']:6.0%}"
    )


def measure(args: argparse.Namespace, base: Load) -> list[dict[str, Any]]:
    """Measure every combination; print a line for each."""
    found = []
    # One process, that has imported everything before anything is measured.
    with multiprocessing.get_context("spawn").Pool(1, prefer_client) as pool:
        for kind in args.kinds:
            for lengths in args.lengths:
                unhurried = replace(base, explain=kind == "explain", lengths=lengths)
                capacity(pool, replace(unhurried, seconds=SETTLE_SECONDS))  # the server measures its latencies
                capacities = [capacity(pool, unhurried)]
                for deadline in args.deadlines:
                    for times in args.times:
                        overloads = []
                        for seed in range(args.rounds):
                            rate = times * statistics.mean(each.per_second for each in capacities)
                            hurried = replace(unhurried, run_up=deadline, rate=rate, deadline=deadline, seed=seed)
                            overloads.append(pool.apply(offer, (hurried,)))
                            capacities.append(capacity(pool, unhurried))
                        found.append(summary(capacities, overloads))
                        print(row(found[-1]), flush=True)
                        capacities = capacities[-1:]
    return found


def main() -> int:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", metavar="BUNDLES", type=Path, help="folder of bundles, such as build/demo/bundles")
    parser.add_argument("--variant", required=True, help="which of them is asked")
    parser.add_argument("--kinds", nargs="+", choices=("predict", "explain"), default=["predict", "explain"])
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=_range,
        metavar="A-B",
        default=[(2.0, 2.9), (3.0, 8.0), (10.0, 30.0)],
        help="ranges of seconds of audio (2-2.9 3-8 10-30)",
    )
    parser.add_argument("--times", nargs="+", type=float, metavar="X", default=[3.0, 10.0], help="in capacities (3 10)")
    parser.add_argument("--deadlines", nargs="+", type=float, metavar="S", default=[1.0, 3.0, 5.0], help="(1 3 5)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each phase that count (10)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="of each combination (1)")
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
        print(HEADER)
        base = Load(json.loads(line)["grpc"], server.pid, args.variant, False, args.lengths[0], args.seconds)
        figures["loads"] = measure(args, base)
    finally:
        server.terminate()
        server.wait(60)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "overload.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def _range(text: str) -> tuple[float, float]:
    shortest, _, longest = text.partition("-")
    return float(shortest), float(longest)


if __name__ == "__main__":
    sys.exit(main())
