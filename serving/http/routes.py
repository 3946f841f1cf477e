"""The addresses of the HTTP port: calls, live audio, their description, health, and the page in the browser."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from speakerlens import page, palette
from speakerlens.serving.context import current_context
from speakerlens.serving.errors import RequestError
from speakerlens.serving.http.calls import Runner, SingleCall
from speakerlens.serving.http.context import STATUSES, call_of, headers_of, problem
from speakerlens.serving.http.live import StreamCall
from speakerlens.serving.http.openapi import SINGLE, STREAMS, description
from speakerlens.serving.models.registry import Models

MEDIA = {".html": "text/html; charset=utf-8", ".css": "text/css", ".mjs": "text/javascript"}
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; media-src 'self' blob:; "
    "img-src 'self' data:; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Of every answer; the page's files may change with the server's version, so that browsers ask each time.
SAFE = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
LIVE, READY = "/livez", "/readyz"


def application(runner: Runner, service: Any, models: Models, ready: Callable[[], bool]) -> ASGIApp:
    """Return the ASGI application.

    Args:
        runner: runs the calls.
        service: the servicer of `speakerlens.v1.SpeakerIdentification`.
        models: what is loaded, for the page.
        ready: whether health is SERVING.
    """
    routes: list[BaseRoute] = []
    for each in SINGLE:
        call = SingleCall(runner, each.rpc, getattr(service, each.rpc), each.request)
        routes.append(Route(each.path.replace("}", ":path}"), call, methods=[each.method]))
    routes += [
        WebSocketRoute(each.path, StreamCall(runner, each.rpc, getattr(service, each.rpc), each.request))
        for each in STREAMS
    ]
    pages = _Pages(runner, models)

    async def health(request: Request) -> Response:
        good = request.url.path == LIVE or ready()
        return Response("ok\n" if good else "not serving\n", 200 if good else 503, {"cache-control": "no-store"})

    described = description()

    async def openapi(_: Request) -> Response:
        return JSONResponse(described, headers=SAFE)

    routes += [
        Route(LIVE, health),
        Route(READY, health),
        Route("/openapi.json", openapi),
        Route("/models.json", pages.settings),
        Route("/examples/{name}", pages.example),
        Route("/", pages.asset),
        Route("/{name}", pages.asset),
    ]
    routed = Starlette(routes=routes, exception_handlers={HTTPException: _no_such_address})
    # Behind a balancer that ends TLS, the address of a redirect would have plain HTTP, and get the token.
    routed.router.redirect_slashes = False
    return _SameOrigin(routed)


class _SameOrigin:
    """Refuse requests from pages of other sites: a user's browser would send them from inside the user's network."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or origin.partition("://")[2] == headers.get("host"):
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "another origin"})
        else:
            text = "pages of other sites may not use this server; put it under their own address"
            await JSONResponse(problem(403, "PERMISSION_DENIED", text), 403)(scope, receive, send)


class _Pages:
    """The page's files, and what it needs to know of the bundles, which takes a token where the server has tokens."""

    def __init__(self, runner: Runner, models: Models) -> None:
        self._runner = runner
        self._models = models
        self._examples: dict[str, Path] = {}

    async def asset(self, request: Request) -> Response:
        """Return one of the page's files."""
        name = request.path_params.get("name", "index.html")
        if name not in (*page.ASSETS, "api.html", "api.mjs"):
            raise HTTPException(404)
        return Response(page.asset(name), headers={**SAFE, "content-type": MEDIA[Path(name).suffix]})

    async def settings(self, request: Request) -> Response:
        """Return what the page has to know of the bundles."""
        return self._refusal(request) or JSONResponse(await run_in_threadpool(self._settings), headers=SAFE)

    async def example(self, request: Request) -> Response:
        """Return an utterance of a bundle."""
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        path = self._examples.get(request.path_params["name"])
        if path is None or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, headers=SAFE)

    def _refusal(self, request: Request) -> Response | None:
        call = call_of("page", request.headers)
        current_context.set(call)
        try:
            self._runner.authenticate(call, request.headers.getlist("authorization"))
        except RequestError as error:
            call.status = error.code
            status = STATUSES[error.code]
            return JSONResponse(problem(status, error.code, str(error), call.id), status, headers_of(call, status))
        return None

    def _settings(self) -> Any:
        bundles = [model.bundle for model in self._models.select([]) if model.bundle.has_classifier]
        bundles.sort(key=lambda bundle: palette.rank(bundle.variant))
        entries: list[dict[str, Any]] = []
        examples: dict[str, tuple[str, Path]] = {}
        for bundle in bundles:
            with suppress(OSError):  # its folder was removed, and the model still answers
                manifest = json.loads((bundle.folder / "bundle.json").read_text("utf-8"))
                entries.append(page.model_entry(manifest))
                examples = examples or {
                    name: (speaker, path) for name, speaker, path in page.example_files(bundle.folder, manifest)
                }
        self._examples = {name: path for name, (_, path) in examples.items()}
        shown = [{"file": f"examples/{name}", "name": speaker} for name, (speaker, _) in examples.items()]
        least = max((bundle.min_samples for bundle in bundles), default=0)
        return {**page.page_settings(entries, shown, least), "server": True}


async def _no_such_address(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(getattr(error, "headers", None) or {})
    text = "there is no such address; /openapi.json lists the addresses"
    code = "NOT_FOUND"
    if status == 405:
        code, text = "UNIMPLEMENTED", f"this address does not take {request.method}"
    return JSONResponse(problem(status, code, text), status, headers)
