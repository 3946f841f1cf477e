"""The health service by itself: names, states, and those who watch."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from speakerlens.serving.rpc.health import Health

SECONDS = 20
Status = health_pb2.HealthCheckResponse.ServingStatus


@asynccontextmanager
async def served(health: Health) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield health_pb2_grpc.HealthStub(channel)
    finally:
        await server.stop(0)


def play(scenario: Callable[[Health, health_pb2_grpc.HealthStub], Awaitable[None]]) -> None:
    async def run() -> None:
        health = Health("a.Service")
        async with served(health) as stub:
            await scenario(health, stub)

    asyncio.run(run())


def ask(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


async def states(stub: health_pb2_grpc.HealthStub, *names: str) -> list[str]:
    answers = []
    for name in names:
        try:
            answers.append(Status.Name((await stub.Check(ask(name), timeout=SECONDS)).status))
        except grpc.aio.AioRpcError as error:
            answers.append(error.code().name)
    return answers


async def received(watcher: Any) -> str:
    answer = await asyncio.wait_for(watcher.read(), SECONDS)
    return "the end" if answer is grpc.aio.EOF else str(Status.Name(answer.status))


def test_each_name_has_its_status() -> None:
    names = ("", "a.Service", "speakerlens.model/u", "speakerlens.model/v", "speakerlens.bundle/v")

    async def scenario(health: Health, stub: health_pb2_grpc.HealthStub) -> None:
        assert await states(stub, *names) == ["NOT_SERVING", "NOT_SERVING", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND"]
        health.report_models({"u": True, "v": True})
        health.report_bundles({"v": True})
        assert await states(stub, *names) == ["NOT_SERVING"] * 5
        health.announce()
        assert await states(stub, *names) == ["SERVING"] * 5
        health.report_bundles({"v": False})
        assert await states(stub, *names) == ["SERVING"] * 4 + ["NOT_SERVING"]
        health.report_models({"u": True, "v": False})
        assert await states(stub, *names) == ["SERVING", "SERVING", "SERVING", "NOT_SERVING", "NOT_SERVING"]
        health.report_models({"u": False, "v": False})
        assert await states(stub, *names) == ["NOT_SERVING"] * 5
        health.report_models({"u": True})
        assert await states(stub, *names) == ["SERVING", "SERVING", "SERVING", "NOT_FOUND", "NOT_SERVING"]
        assert await states(stub, "speakerlens.model/", "speakerlens.bundle/u", "A.service", "v") == ["NOT_FOUND"] * 4
        health.drain()
        health.report_models({"u": True})
        health.announce()
        assert await states(stub, "", "a.Service", "speakerlens.model/u") == ["NOT_SERVING"] * 3

    play(scenario)


def test_every_watcher_gets_every_change() -> None:
    """Also after another watcher of the same name has cancelled, and while one does not read."""

    async def scenario(health: Health, stub: health_pb2_grpc.HealthStub) -> None:
        health.announce()
        first, second, unread = (stub.Watch(ask("")) for _ in range(3))
        assert await received(first) == await received(second) == "SERVING"
        await unread.initial_metadata()
        first.cancel()
        unknown = stub.Watch(ask("speakerlens.model/v"))
        assert await received(unknown) == "SERVICE_UNKNOWN"
        health.report_models({"v": True})
        assert await received(unknown) == "SERVING"
        health.report_models({"v": False})
        assert await received(unknown) == await received(second) == "NOT_SERVING"
        health.report_models({})
        assert await received(unknown) == "SERVICE_UNKNOWN"
        assert await received(second) == "SERVING"
        health.drain()
        assert await received(second) == "NOT_SERVING"
        assert await received(second) == await received(unknown) == "the end"
        assert (await second.code(), await unknown.code()) == (grpc.StatusCode.OK, grpc.StatusCode.OK)
        late = stub.Watch(ask(""))
        assert [await received(late), await received(late)] == ["NOT_SERVING", "the end"]
        unread.cancel()

    play(scenario)


@pytest.mark.parametrize("changes", [2, 3])
def test_an_unchanged_status_is_sent_once(changes: int) -> None:
    async def scenario(health: Health, stub: health_pb2_grpc.HealthStub) -> None:
        health.announce()
        watcher = stub.Watch(ask(""))
        assert await received(watcher) == "SERVING"
        for _ in range(changes):
            health.report_models({"v": True})
            await asyncio.sleep(0.01)
        health.drain()
        assert await received(watcher) == "NOT_SERVING"

    play(scenario)
