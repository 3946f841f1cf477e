"""Calls that are lost when one of three servers is killed, and in a rolling restart.

    python -m benchmarks.failover --tools build/balancing --out benchmarks/results/failover.json
    python -m benchmarks.failover --ways list,nginx --callers 8

Starts three servers on a toy bundle with one file of enrolled speakers, and callers that send calls together, twice a
second: all but two of them identify, two enrol speakers of different names. In the first drill one server is killed
(SIGKILL) while such a volley is under way, and comes back later. In the second each server is stopped (SIGTERM, with a
lame duck) and started again, one after the other. The callers reach the servers in one of these ways:

* list: the client with the three addresses, as it is by default;
* list-off: the same with gRPC's defaults (`balancing=None`), which use the first server that can be reached;
* nginx, haproxy, envoy: the client with `balancing=None` behind the balancer of deploy/balancing: what any client sees;
* nginx-client and so on: the client as it is by default, behind the balancer.

For each drill: calls, those that failed, and those that failed again when the caller repeated them at once. Enrolments
are never repeated: printed are those that failed, and the runs that the servers' logs have beyond one a call.
"""

import argparse
import json
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.environment import environment
from deploy.balancing.balancers import CONFIGURATIONS, balancing
from speakerlens import ClientError, SpeakerClient
from speakerlens.balancing import DEFAULT_BALANCING, Balancing, Target
from speakerlens.channel import open_channel
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from tests.serving import toy
from tests.serving.harness import ServerProcess, raw, talk
from tests.serving.test_restart import free_port

WAYS = ("list", "list-off", *(f"{name}{suffix}" for name in CONFIGURATIONS for suffix in ("", "-client")))
RATE = 16_000
CALL_SECONDS = 20.0
VOLLEY_SECONDS = 0.5
# From the begin of a volley to the signal.
SIGNAL_SECONDS = 0.03
ENROLLING = 2


@dataclass
class Drill:
    """What callers saw in one drill.

    Attributes:
        calls, failed, failed_again: identifications; those that failed; those whose repetition failed too.
        enrolments, enrolments_failed: the same of enrolments, which are not repeated.
        slowest_s: the longest call with its repetition.
        errors: messages of failed calls and their number.
    """

    calls: int = 0
    failed: int = 0
    failed_again: int = 0
    enrolments: int = 0
    enrolments_failed: int = 0
    slowest_s: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)

    def note(self, message: str) -> None:
        """Count a failed call by its message."""
        self.errors[message] = self.errors.get(message, 0) + 1


@dataclass
class Outcome:
    """All that one way gave: the drills by name, enrolments that ran more than once, and callers that hang."""

    drills: dict[str, Drill]
    twice: int = 0
    hanging: int = 0
    exit_statuses: list[int] = field(default_factory=list)

    def row(self, way: str) -> str:
        """Return a line of the table."""
        cells = []
        for name in ("steady", "kill", "rolling"):
            drill = self.drills[name]
            cells.append(f"{drill.calls:5} {drill.failed:4}/{drill.failed_again:<3} {drill.enrolments_failed:2}")
        return f"{way:15} | {' | '.join(cells)} | {self.twice:5} | {self.hanging}"


class Callers:
    """Threads that call together, each with a client of its own, as processes of users would."""

    def __init__(self, address: str | Sequence[str], policy: Balancing | None, count: int) -> None:
        self._address = address
        self._policy = policy
        self._samples = talk(1.0)
        self._start = threading.Barrier(count + 1)
        self._lock = threading.Lock()
        self._over = False
        self._serial = 0
        self.drill = Drill()
        self._threads = [
            threading.Thread(target=self._enroll if index < ENROLLING else self._identify, daemon=True)
            for index in range(count)
        ]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the threads within the block."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over = True
            self._start.wait(CALL_SECONDS * 3)
            for thread in self._threads:
                thread.join(CALL_SECONDS)

    def hanging(self) -> int:
        """Return how many threads have not ended."""
        return sum(thread.is_alive() for thread in self._threads)

    def volley(self, signalled: ServerProcess | None = None, number: int = signal.SIGTERM) -> None:
        """Have every caller make one call; send a signal to a server while they are under way."""
        self._start.wait(CALL_SECONDS * 3)
        if signalled is not None:
            time.sleep(SIGNAL_SECONDS)
            signalled.process.send_signal(number)
        time.sleep(VOLLEY_SECONDS)

    def _turns(self) -> Iterator[Drill]:
        while True:
            self._start.wait(CALL_SECONDS * 3)
            if self._over:
                return
            yield self.drill

    def _identify(self) -> None:
        with SpeakerClient(self._address, timeout=CALL_SECONDS, balancing=self._policy) as client:
            for drill in self._turns():
                started, errors = time.monotonic(), list[ClientError]()
                for _ in range(2):
                    try:
                        client.identify(self._samples, rate=RATE)
                    except ClientError as error:
                        errors.append(error)
                    else:
                        break
                with self._lock:
                    drill.calls += 1
                    drill.failed += bool(errors)
                    drill.failed_again += len(errors) == 2
                    drill.slowest_s = max(drill.slowest_s, time.monotonic() - started)
                    for each in errors:
                        drill.note(_general(str(each)))

    def _enroll(self) -> None:
        with open_channel(Target.parse(self._address), False, None, self._policy) as channel:
            stub = SpeakerIdentificationStub(channel)
            for drill in self._turns():
                with self._lock:
                    self._serial += 1
                    name = f"enrolment-{self._serial}"
                request = pb.EnrollRequest(speaker=name, utterances=[raw(self._samples)])
                failure = ""
                try:
                    stub.Enroll(request, timeout=CALL_SECONDS, metadata=(("x-request-id", name),))
                except grpc.RpcError as error:
                    failure = _general(f"Enroll: {error.details()}")
                with self._lock:
                    drill.enrolments += 1
                    drill.enrolments_failed += bool(failure)
                    if failure:
                        drill.note(failure)


def measure(way: str, callers: int, lame_duck: float, folder: Path, tools: Path | None) -> Outcome:
    """Run both drills in one way."""
    toy.write_bundle(folder / "bundles", "v", 1)
    ports = [(free_port(), free_port()) for _ in range(3)]
    everyone: list[ServerProcess] = []

    def start(port: int, metrics: int) -> ServerProcess:
        flags = f"--port={port}", f"--metrics-port={metrics}", f"--speakers={folder / 'speakers.db'}"
        server = ServerProcess(folder / "bundles", *flags, f"--lame-duck-seconds={lame_duck:g}", "--threads=1")
        everyone.append(server)
        return server

    servers = [start(*each) for each in ports]
    try:
        with _reached(way, ports, folder, tools) as (address, policy):
            outcome, all_callers = _drills(
                Callers(address, policy, callers), servers, lambda index: start(*ports[index])
            )
        outcome.hanging = all_callers.hanging()
    finally:
        for server in everyone:
            server.stop()
            server.channel.close()
    runs = Counter[str]()
    for server in everyone:
        runs.update(re.findall(r"request=(enrolment-\d+) .*method=Enroll .*code=OK", server.log))
    outcome.twice = sum(count - 1 for count in runs.values())
    return outcome


def _drills(
    callers: Callers, servers: list[ServerProcess], start: Callable[[int], ServerProcess]
) -> tuple[Outcome, Callers]:
    outcome = Outcome({name: Drill() for name in ("steady", "kill", "rolling")})
    with callers.running():
        callers.drill = outcome.drills["steady"]
        for _ in range(6):
            callers.volley()
        callers.drill = outcome.drills["kill"]
        callers.volley(servers[0], signal.SIGKILL)
        for _ in range(6):
            callers.volley()
        servers[0].wait()
        servers[0] = start(0)
        time.sleep(2)
        for _ in range(2):
            callers.volley()
        callers.drill = outcome.drills["rolling"]
        for index in range(3):
            callers.volley(servers[index])
            while servers[index].process.poll() is None:
                callers.volley()
            outcome.exit_statuses.append(servers[index].wait())
            callers.volley()
            servers[index] = start(index)
            time.sleep(2)
        for _ in range(2):
            callers.volley()
    return outcome, callers


@contextmanager
def _reached(
    way: str, ports: Sequence[tuple[int, int]], folder: Path, tools: Path | None
) -> Iterator[tuple[str | list[str], Balancing | None]]:
    """Yield the address and the balancing of the clients."""
    if way.startswith("list"):
        yield [f"127.0.0.1:{port}" for port, _ in ports], None if way == "list-off" else DEFAULT_BALANCING
        return
    name, _, own = way.partition("-")
    with balancing(name, ports, folder, tools) as address:
        time.sleep(2)  # until the balancer has checked the servers
        yield address, DEFAULT_BALANCING if own else None


def _general(message: str) -> str:
    """Return a message without addresses."""
    return re.sub(r"(ipv4:)?127[\d.:,]+", "…", message)[:120]


def main() -> int:
    """Print the table, and write it with more figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {', '.join(WAYS)} (default: all)")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--lame-duck", type=float, default=2.0, help="--lame-duck-seconds of the servers")
    parser.add_argument("--tools", type=Path, help="folder of deploy/balancing/fetch.sh")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print("calls, failed/failed again, failed enrolments, by drill; enrolments run twice; callers that hang")
    print(f"{'way':15} | {'steady':18} | {'kill -9':18} | {'rolling restart':18} | twice | hang")
    record = {"environment": environment(), "callers": options.callers, "lame_duck_s": options.lame_duck}
    results: dict[str, Any] = {}
    for way in options.ways.split(","):
        with tempfile.TemporaryDirectory() as folder:
            outcome = measure(way, options.callers, options.lame_duck, Path(folder), options.tools)
        print(outcome.row(way), flush=True)
        for name, drill in outcome.drills.items():
            for message, count in drill.errors.items():
                print(f"    {name}: {count} x {message}", flush=True)
        results[way] = asdict(outcome)
        if options.out:  # after each, as all take ten minutes
            options.out.write_text(json.dumps({**record, "ways": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
