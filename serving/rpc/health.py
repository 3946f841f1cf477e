"""`grpc.health.v1`: the status of the server, its services, each variant and each variant's bundles, by name.

| name | SERVING while |
|---|---|
| empty, and the services' full names | calls are accepted, and the engine of at least one model works |
| `speakerlens.model/<variant>` | calls are accepted, and the engine of the variant's newest model works |
| `speakerlens.bundle/<variant>` | calls are accepted, and the newest version on disk is the one that answers |
| `speakerlens.store` | calls are accepted, and the store of enrolled speakers can be used; unknown without a store |

A server that is about to stop accepts calls for a while, and is NOT_SERVING nevertheless (`--lame-duck-seconds`).

grpcio's own servicer is not used: of two watchers of a name it drops the second when the first cancels; it writes to
watchers under a lock, so that one that does not read delays every change; and a graceful stop waits for watchers.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

OVERALL = ""
MODEL, BUNDLE, STORE = "speakerlens.model/", "speakerlens.bundle/", "speakerlens.store"

# How long a watch that begins while the server drains lasts.
LATE_SECONDS = 1.0

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The servicer; everything is NOT_SERVING before `announce` and after `retire` or `drain`.

    Args:
        services: full names of the services that share the server's status.
    """

    def __init__(self, *services: str) -> None:
        self._services = (OVERALL, *services)
        self._open = False
        self._retired = False
        self._draining = False
        self._models: dict[str, bool] = {}
        self._bundles: dict[str, bool] = {}
        self._store: bool | None = None
        self._changed = asyncio.Event()

    def announce(self) -> None:
        """Report that calls are accepted from now on."""
        self._open = True
        self._notify()

    def report_models(self, working: Mapping[str, bool]) -> None:
        """Report the loaded variants, and whether the engine of their newest model works."""
        self._models = dict(working)
        self._notify()

    def report_bundles(self, current: Mapping[str, bool]) -> None:
        """Report the variants on disk, and whether their newest version is the one that answers."""
        self._bundles = dict(current)
        self._notify()

    def report_store(self, working: bool) -> None:
        """Report whether the store of enrolled speakers can be used."""
        self._store = working
        self._notify()

    def retire(self) -> None:
        """Report NOT_SERVING from now on, although calls are still accepted: callers go to other servers in time."""
        self._retired = True
        self._notify()

    def drain(self) -> None:
        """Send NOT_SERVING to every watcher and end their calls, for which a stop would wait."""
        self._retired = self._draining = True
        self._notify()

    def serving(self, name: str = OVERALL) -> bool:
        """Return whether the status of a name is SERVING."""
        return bool(self._status(name) == SERVING)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the current status; NOT_FOUND for unknown names."""
        status = self._status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "service: unknown name")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Stream the status at every change, until the client cancels or the server drains."""
        sent, late = None, self._draining
        while True:
            changed = self._changed  # taken before the status, so that no change is missed in between
            status, last = self._status(request.service), self._draining
            if status != sent:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                sent = status
            if last:
                # Clients watch again at once after an end, as long as their connection lasts.
                await asyncio.sleep(LATE_SECONDS if late else 0)
                return
            await changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, name: str) -> Any:
        if name in self._services:
            working = not self._models or any(self._models.values())
        elif name.startswith(MODEL) and name.removeprefix(MODEL) in self._models:
            working = self._models[name.removeprefix(MODEL)]
        elif name.startswith(BUNDLE) and name.removeprefix(BUNDLE) in self._bundles:
            working = self._bundles[name.removeprefix(BUNDLE)]
        elif name == STORE and self._store is not None:
            working = self._store
        else:
            return SERVICE_UNKNOWN
        return SERVING if working and self._open and not self._retired else NOT_SERVING
