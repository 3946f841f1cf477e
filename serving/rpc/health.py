"""`grpc.health.v1`: the server, its services, every variant, and every variant's bundles, each under a name.

| name | SERVING while |
|---|---|
| empty, and the services' full names | calls are let in, and the engine of at least one model works |
| `speakerlens.model/<variant>` | calls are let in, and the engine of the variant's newest model works |
| `speakerlens.bundle/<variant>` | calls are let in, and the newest version on disk is the one that answers |

grpcio's own servicer is not used: of two who watch a name, it forgets the second when the first hangs up; it writes to
watchers under a lock, so that one who does not read holds up every change; and a graceful stop waits for watchers.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

OVERALL = ""
MODEL, BUNDLE = "speakerlens.model/", "speakerlens.bundle/"

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The servicer; everything is NOT_SERVING until `announce`, and for good after `drain`.

    Args:
        services: full names of the services that share the server's state.
    """

    def __init__(self, *services: str) -> None:
        self._services = (OVERALL, *services)
        self._open = False
        self._draining = False
        self._models: dict[str, bool] = {}
        self._bundles: dict[str, bool] = {}
        self._changed = asyncio.Event()

    def announce(self) -> None:
        """Calls are let in from now on."""
        self._open = True
        self._tell()

    def report_models(self, working: Mapping[str, bool]) -> None:
        """Which variants there are, and whether the engine of their newest model works."""
        self._models = dict(working)
        self._tell()

    def report_bundles(self, current: Mapping[str, bool]) -> None:
        """Which variants lie on disk, and whether their newest version is the one that answers."""
        self._bundles = dict(current)
        self._tell()

    def drain(self) -> None:
        """Tells every watcher NOT_SERVING, and ends their calls, which a stop would wait for."""
        self._draining = True
        self._tell()

    def serving(self, name: str = OVERALL) -> bool:
        """Whether the state of a name is SERVING."""
        return bool(self._state(name) == SERVING)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The state now; NOT_FOUND for a name that there is not."""
        state = self._state(request.service)
        if state == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "service: there is no such name")
        return health_pb2.HealthCheckResponse(status=state)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Streams the state at every change, until the client goes or the server drains."""
        error_status = None
        while True:
            changed = self._changed  # taken before the state, so that no change is missed in between
            state, last = self._state(request.service), self._draining
            if state != error_status:
                await context.write(health_pb2.HealthCheckResponse(status=state))
                error_status = state
            if last:
                return
            await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _state(self, name: str) -> Any:
        if name in self._services:
            well = not self._models or any(self._models.values())
        elif name.startswith(MODEL) and name.removeprefix(MODEL) in self._models:
            well = self._models[name.removeprefix(MODEL)]
        elif name.startswith(BUNDLE) and name.removeprefix(BUNDLE) in self._bundles:
            well = self._bundles[name.removeprefix(BUNDLE)]
        else:
            return SERVICE_UNKNOWN
        return SERVING if well and self._open and not self._draining else NOT_SERVING
