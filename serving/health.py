"""`grpc.health.v1` that a graceful stop does not wait for."""

import asyncio
from typing import Any

from grpc_health.v1 import health, health_pb2

OVERALL = ""


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """The library's health service, NOT_SERVING at first, whose watchers are let go when the server drains.

    A watching client would otherwise count as a call in flight, for as long as it likes.

    Args:
        services: full names of the services that share the server's state.
    """

    def __init__(self, *services: str) -> None:
        super().__init__()
        self._services = (OVERALL, *services)
        self._watching: set[asyncio.Task[None]] = set()

    async def announce(self, serving: bool) -> None:
        """Sets the state of every service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self.set(service, status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Streams the state until the client goes or the server drains."""
        task = asyncio.create_task(super().Watch(request, context))
        self._watching.add(task)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            self._watching.discard(task)

    async def drain(self) -> None:
        """Tells every watcher NOT_SERVING, and ends their calls."""
        await self.enter_graceful_shutdown()
        await asyncio.sleep(0)  # the watchers write it
        for task in self._watching:
            task.cancel()
