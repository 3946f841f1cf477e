"""Callers that each wait for their answer before they send the next request, over gRPC or HTTP, in one process.

Requests are made beforehand and answers are not parsed, so that the client takes as little of the cores as it can.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True)
class Target:
    """Where a request goes: `protocol` is grpc or http, `path` the method; an answer has at least `least` bytes."""

    protocol: str
    address: str
    path: str
    body: bytes
    least: int


@dataclass(frozen=True)
class Load:
    """What came of a load: the seconds that it took, the latency of each answer, and errors."""

    seconds: float
    latencies: list[float]
    errors: list[str]


def send(target: Target, callers: int, calls: int) -> Load:
    """Send `calls` requests from `callers` at once, and wait for all."""
    return asyncio.run((_grpc if target.protocol == "grpc" else _http)(target, callers, calls))


class _Clock:
    """Takes the times of all callers."""

    def __init__(self, calls: int) -> None:
        self.left = iter(range(calls))
        self.latencies: list[float] = []
        self.errors: list[str] = []
        self.begun = time.perf_counter()

    def answered(self, sent: float, size: int, least: int) -> None:
        if size < least:
            self.errors.append(f"an answer of {size} bytes")
        else:
            self.latencies.append(time.perf_counter() - sent)

    def load(self) -> Load:
        return Load(time.perf_counter() - self.begun, self.latencies, self.errors)


async def _grpc(target: Target, callers: int, calls: int) -> Load:
    channels = [grpc.aio.insecure_channel(target.address, [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
                for _ in range(min(callers, 8))]  # fmt: skip
    methods: list[Any] = [channel.unary_unary(target.path) for channel in channels]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    clock = _Clock(calls)

    async def work(number: int) -> None:
        method = methods[number % len(methods)]
        for _ in clock.left:
            sent = time.perf_counter()
            try:
                clock.answered(sent, len(await method(target.body)), target.least)
            except grpc.aio.AioRpcError as error:
                clock.errors.append(f"{error.code().name}: {error.details()}"[:200])

    await asyncio.gather(*(work(number) for number in range(callers)))
    load = clock.load()
    await asyncio.gather(*(channel.close() for channel in channels))
    return load


async def _http(target: Target, callers: int, calls: int) -> Load:
    host, _, port = target.address.partition(":")
    head = f"POST {target.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(target.body)}\r\n\r\n".encode() + target.body
    streams = [await asyncio.open_connection(host, int(port), limit=2**22) for _ in range(callers)]
    clock = _Clock(calls)

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in clock.left:
            sent = time.perf_counter()
            try:
                writer.write(request)
                status, size = await _answer(reader)
            except (OSError, asyncio.IncompleteReadError) as error:
                clock.errors.append(f"{type(error).__name__}: {error}"[:200])
                return
            if status == 200:
                clock.answered(sent, size, target.least)
            else:
                clock.errors.append(f"status {status}")

    await asyncio.gather(*(work(*stream) for stream in streams))
    load = clock.load()
    for _, writer in streams:
        writer.close()
    return load


async def _answer(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Return status and size of an answer's body."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    sizes = [int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:")]
    await reader.readexactly(sizes[0])
    return int(lines[0].split()[1]), sizes[0]
