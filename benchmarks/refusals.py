"""What a refusal costs a gRPC server for Python that does nothing else: the floor under the server's own refusals.

  python -m benchmarks.refusals --out build/refusals.json

Starts a server whose only answer is RESOURCE_EXHAUSTED, before a message is read, and sends it messages at a fixed rate
from this process, over several connections. Sizes of messages and the server's channel arguments are taken in turn,
each in several rounds; printed are medians of the server's processor time for a refusal, and of the client's latency.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from benchmarks.environment import environment

SIZES = (1_000, 100_000, 300_000)
# A smaller window makes the sender of a large message wait before the refusal reaches it.
ARGUMENTS: dict[str, list[tuple[str, int]]] = {
    "default": [],
    "window of 64 KB": [("grpc.http2.bdp_probe", 0)],
    "window of 1 KB": [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)],
}
CONNECTIONS = 4
DEADLINE_SECONDS = 3.0
METHOD = "/benchmark/Refused"


class _Refusing(grpc.GenericRpcHandler):
    def service(self, _: grpc.HandlerCallDetails) -> Any:
        async def refuse(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the server is overloaded; try again later")

        return grpc.stream_unary_rpc_method_handler(refuse)


def _serve(arguments: list[tuple[str, int]], parent: Connection) -> None:
    """Serve until the parent says "stop"; answer everything else with the processor time so far, in seconds."""

    async def run() -> None:
        server = grpc.aio.server(options=arguments)
        server.add_generic_rpc_handlers((_Refusing(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        parent.send(port)
        while await asyncio.to_thread(parent.recv) != "stop":
            used = resource.getrusage(resource.RUSAGE_SELF)
            parent.send(used.ru_utime + used.ru_stime)
        await server.stop(0)

    asyncio.run(run())


async def _send(port: int, size: int, rate: float, seconds: float) -> list[float]:
    """Return the latency in seconds of each refusal; calls start at a fixed rate, whatever the answers do."""
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CONNECTIONS)
    ]
    calls: list[Any] = [channel.unary_unary(METHOD) for channel in channels]
    message, latencies = os.urandom(size), []

    async def one(number: int) -> None:
        started = time.perf_counter()
        try:
            await calls[number % CONNECTIONS](message, timeout=DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
        latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    tasks = []
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    for channel in channels:
        await channel.close()
    return latencies


def measure(arguments: list[tuple[str, int]], size: int, rate: float, seconds: float) -> tuple[float, list[float]]:
    """Return the server's processor time for a refusal, and the latency of each at the client, in seconds."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(arguments, theirs), daemon=True)
    process.start()
    port = ours.recv()
    asyncio.run(_send(port, size, rate, 0.2))
    ours.send("time")
    before = ours.recv()
    latencies = asyncio.run(_send(port, size, rate, seconds))
    ours.send("time")
    cost = (ours.recv() - before) / len(latencies)
    ours.send("stop")
    process.join(10)
    return cost, latencies


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=300, help="refusals a second (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="of all measurements (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    costs: dict[tuple[str, int], list[float]] = defaultdict(list)
    latencies: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for size in SIZES:
            for name, arguments in ARGUMENTS.items():
                cost, seen = measure(arguments, size, options.rate, options.seconds)
                costs[name, size].append(cost)
                latencies[name, size] += seen
    rows = []
    for (name, size), of in costs.items():
        seen = sorted(latencies[name, size])
        row = {
            "server": name,
            "message_bytes": size,
            "processor_ms": round(1e3 * statistics.median(of), 3),
            "latency_p50_ms": round(1e3 * seen[len(seen) // 2], 2),
            "latency_p99_ms": round(1e3 * seen[int(0.99 * len(seen))], 2),
        }
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"environment": environment(), "refusals": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
