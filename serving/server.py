"""Run the server: bind the ports, load and warm up the models, serve, drain."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from speakerlens.containers import has_ffmpeg
from speakerlens.decoder_pool import shared_pool
from speakerlens.protos.inference import inference_pb2_grpc
from speakerlens.protos.speakerlens.v1 import identification_pb2_grpc
from speakerlens.serving.api.identification import SERVICE, Service
from speakerlens.serving.api.infer import Inference
from speakerlens.serving.api.inference import ALWAYS, InferenceService
from speakerlens.serving.api.inference import SERVICE as INFERENCE
from speakerlens.serving.config import Config
from speakerlens.serving.engine.admission import Admission
from speakerlens.serving.engine.placement import find_devices, runtime_version
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.errors import StartupError
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.monitor import StoreMonitor
from speakerlens.serving.journal import Journal
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.metrics.http import HealthPages
from speakerlens.serving.models.loader import fit_to_device, placement_of
from speakerlens.serving.models.registry import Models
from speakerlens.serving.models.repository import Repository, scan
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.robustness.observer import RobustnessObserver
from speakerlens.serving.robustness.probes import Prober
from speakerlens.serving.rpc.auth import AuthInterceptor, Tokens
from speakerlens.serving.rpc.channels import (
    address_of,
    cannot_listen,
    channel_arguments,
    check_address,
    exposure,
    fitting_connections,
)
from speakerlens.serving.rpc.drain import close_idle, close_port
from speakerlens.serving.rpc.health import Health
from speakerlens.serving.rpc.interceptor import BuiltinServicesInterceptor, CallGate, CallInterceptor
from speakerlens.serving.rpc.tls import server_credentials
from speakerlens.serving.rpc.tracing import Tracing
from speakerlens.serving.rpc.transfer import MessageTransfer

if TYPE_CHECKING:
    from speakerlens.serving.http.server import HttpServer

log = logging.getLogger(__name__)

# A client may have its answer, and send a signal, shortly before the event loop learns that the answer was sent.
SENT_SECONDS = 0.1
# Of the lame duck: how long connections without calls are closed while other calls are still taken.
LEAVING_SECONDS = 1.0
# How long connections may take to close after the last call; a stream of reflection never ends by itself.
CLOSING_SECONDS = 1.0
# Between the two scans of the bundles that SIGHUP asks for.
SECOND_LOOK_SECONDS = 1.0
# Waiting without a limit, gRPC would cancel its own termination together with the waiting task.
LONGEST_WAIT_SECONDS = 1e8


async def serve(config: Config, output: TextIO, announce: Callable[[Mapping[str, Any]], str] = json.dumps) -> bool:
    """Serve until SIGTERM or SIGINT, then finish the calls in progress; a second signal ends the process at once.

    Args:
        config: what the operator set.
        output: gets one line when the server is ready.
        announce: returns that line, from the bound addresses, the models and the provider.

    Returns:
        False where the time for that ran out and calls were aborted.

    Raises:
        StartupError: no usable bundle, an occupied port, a missing device; or the server can no longer answer.
    """
    stop, hangup = _signals()
    asyncio.get_running_loop().set_default_executor(_Threads(thread_name_prefix="disk"))
    stopping = asyncio.create_task(stop.wait())
    checking = asyncio.create_task(asyncio.to_thread(_check, config))
    await asyncio.wait({checking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not checking.done():
        return True
    server = Server(*checking.result(), lambda facts: print(announce(facts), file=output, flush=True))
    await server.listen()
    working = asyncio.create_task(server.work(hangup))
    failing = asyncio.create_task(server.failed())
    try:
        await asyncio.wait({working, failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (working, failing):
            if task.done() and not stop.is_set():
                task.result()  # raises: only an error ends them
    finally:
        working.cancel()
        if stop.is_set() and not failing.done():
            await server.retire(failing)
        failing.cancel()
        finished = await server.drain()
    return finished


def _check(config: Config) -> tuple[Config, str]:
    """Check folder and device before a port is bound.

    Returns:
        The configuration with limits that suit the device, and why CUDA, if it is installed, is not used.

    Raises:
        StartupError: there is no bundle, or the device does not work.
    """
    scan(config.bundles)
    return fit_to_device(config), find_devices(config.device)[0].unused


class _Threads(ThreadPoolExecutor):
    """Threads for the disk, which are not waited for: on a network disk that does not answer, one never ends."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """End the threads once they are idle."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


class Server:
    """The listening ports and what answers on them; construct it on the event loop."""

    def __init__(self, config: Config, unused_cuda: str, announce: Callable[[Mapping[str, Any]], object]) -> None:
        self._config = config
        self._unused_cuda = unused_cuda
        self._announce = announce
        self.metrics = Metrics(config.metric_exemplars)
        self._scheduler = Scheduler(config.device, placement_of(config).instances)
        self._gate = CallGate()
        services = (SERVICE, INFERENCE)
        self._health = Health(*services)
        self._admission = Admission(
            config.max_in_flight, config.codec_threads, self._scheduler.running_s, self._scheduler.queued_s
        )
        self._codec = ThreadPoolExecutor(config.codec_threads, thread_name_prefix="codec")
        self._decoders = shared_pool()
        self._decoders.idle = config.codec_threads
        self._decoders.subscribe(self.metrics.count_decoder_restart)
        self._speakers = AsyncSpeakerStore(config.speakers)
        self._journal = None if config.journal is None else Journal(config.journal, self.metrics.count_journal)
        self._service = Service(config, self.metrics, self._codec, self._speakers, self._journal)
        self._models = Models(self.metrics)
        self._store_monitor = StoreMonitor(
            self._speakers,
            self.metrics.store,
            self._health.report_store,
            self._newest_digests,
            config.forget_after,
        )
        self._store_monitoring: asyncio.Task[None] | None = None
        self._observer = RobustnessObserver(config, self.metrics, self._models, self._scheduler)
        self._repository = Repository(config, self._models, self._scheduler, self.metrics, self._health)
        self._inference = InferenceService(self._models, self._health, config)
        self._prober = Prober(self._models, self.metrics.robustness.probes, self._codec, config.probe_seconds)
        self._pages = HealthPages(self._health.serving, self.metrics.page.application())
        self._probing: asyncio.Task[None] | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._reloads: list[Callable[[], object]] = []
        tokens = Tokens(config.tokens) if config.tokens else None
        if tokens is not None:
            self._reloads.append(tokens.reload)
        self._port = 0
        self._ports: dict[str, str] = {}
        self._transfers = _transfers(config, config.max_held_bytes)
        self._tracing = Tracing(config.trace_endpoint) if config.trace_endpoint else None
        calls = CallInterceptor(
            services, self._gate, self._admission, self.metrics, self._transfers, ALWAYS, self._tracing
        )
        connections = fitting_connections(config.max_connections)
        self._http = None if config.http_port is None else self._open_http(calls, tokens, connections)
        self._grpc = grpc.aio.server(
            interceptors=[
                calls,
                *([AuthInterceptor(tokens)] if tokens is not None else []),
                # A budget of its own, as health needs no token: slow requests to it leave the others' budget alone.
                BuiltinServicesInterceptor(services, _transfers(config, config.max_held_bytes // 4)),
            ],
            options=[
                # Two servers on one port would share its calls without a warning.
                ("grpc.so_reuseport", 0),
                *channel_arguments(config, connections),
            ],
        )
        identification_pb2_grpc.add_SpeakerIdentificationServicer_to_server(self._service, self._grpc)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._inference, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if config.reflection:
            reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)

    def _open_http(self, calls: CallInterceptor, tokens: Tokens | None, connections: int) -> "HttpServer":
        """Bind the port of HTTP.

        Raises:
            StartupError: it cannot be bound, a certificate is not valid, or the extra is not installed.
        """
        try:
            from speakerlens.serving.http.calls import Runner  # noqa: PLC0415  (an extra)
            from speakerlens.serving.http.routes import application  # noqa: PLC0415
            from speakerlens.serving.http.server import HttpServer  # noqa: PLC0415
        except ImportError as error:
            raise StartupError(
                f'--http-port needs Starlette and uvicorn ({error}): install them with pip install "speakerlens[http]"'
            ) from error
        config = self._config
        runner = Runner(calls.run, tokens, config.max_message_bytes, config.transfer_seconds)
        return HttpServer(application(runner, self._service, self._models, self._health.serving), config, connections)

    async def listen(self) -> None:
        """Bind the ports; health is NOT_SERVING, and calls are refused as UNAVAILABLE, until the models are loaded.

        Raises:
            StartupError: an address cannot be bound, or a certificate is not valid.
        """
        config = self._config
        try:
            self._decoders.start(av=has_ffmpeg())
        except OSError as error:
            raise StartupError(f"the decoder's process cannot be started: {error.strerror}") from error
        credentials = server_credentials(config, self._watch_certificate)
        warning = exposure(config)
        if warning:
            log.warning("%s", warning)
        check_address(config.host, config.port, "--port")
        address = address_of(config.host, config.port)
        try:
            if credentials is None:
                port = self._grpc.add_insecure_port(address)
            else:
                port = self._grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise StartupError(f"--port {config.port}: cannot listen on {address}: {error}") from error
        self._port = port
        self._ports["grpc"] = address_of(config.host, port)
        if self._http is not None:
            scheme = "http" if credentials is None else "https"
            self._ports["http"] = f"{scheme}://{address_of(config.host, self._http.port)}/"
            self._http.start()
        if config.metrics:
            self._heartbeat = asyncio.create_task(self._pages.beat())
            self._ports["metrics"] = f"http://{address_of(config.metrics_host, self._open_metrics())}/metrics"
        await self._grpc.start()

    def _newest_digests(self) -> list[str]:
        return [model.bundle.digest for model in self._models.select([])]

    def _watch_certificate(self, expiry: Callable[[], float]) -> None:
        self.metrics.watch_expiry(expiry)
        self._reloads.append(expiry)

    def _open_metrics(self) -> int:
        host, port = self._config.metrics_host, self._config.metrics_port
        try:
            return self.metrics.page.serve(host, port, self._pages)
        except OSError as error:
            raise cannot_listen("--metrics-port", host, port, error) from error

    async def work(self, hangup: asyncio.Event) -> None:
        """Load the models, accept calls, and follow the files on disk, until it is cancelled.

        Args:
            hangup: set to have tokens, certificates and bundles read again.

        Raises:
            StartupError: no bundle can be served.
        """
        await self._repository.load()
        self._open()
        if self._config.probe_seconds:
            self._probing = asyncio.create_task(self._prober.run())
        while True:
            if await _is_set(hangup, self._config.watch):
                log.info("SIGHUP: reading tokens, certificates and bundles again")
                for reload in self._reloads:
                    reload()
                # A folder counts as removed, or as incomplete, only if a second scan finds the same.
                await self._repository.look()
                await asyncio.sleep(SECOND_LOOK_SECONDS)
            await self._repository.look()

    async def failed(self) -> None:
        """Wait for a failure of the scheduler or of gRPC.

        Raises:
            StartupError: no batch is computed any more, or no call is accepted any more.
        """
        ended = asyncio.ensure_future(self._grpc.wait_for_termination(LONGEST_WAIT_SECONDS))
        try:
            awaited: set[asyncio.Future[Any]] = {self._scheduler.failed, ended}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        what = "the scheduler has failed" if self._scheduler.failed.done() else "gRPC accepts no calls"
        raise StartupError(f"{what} after an unexpected error, see the log; the server ends")

    def _open(self) -> None:
        """Accept calls, and write the line that says so."""
        models = self._models
        self._service.pipeline = Pipeline(
            models, self._config, self.metrics, self._codec, self._observer, self._admission
        )
        self._inference.inference = Inference(self._service.pipeline, self._config, self.metrics)
        self.metrics.engine_info.labels(models.provider, runtime_version()).set(1)
        self.metrics.engine_fallback.set(bool(self._unused_cuda))
        self._gate.closed = None
        self._health.announce()
        self._store_monitoring = asyncio.create_task(self._store_monitor.run())
        names = [model.bundle.name for model in models]
        instances = len(self._scheduler.instances)
        self.metrics.engine_instances.set(instances)
        self._announce(
            {
                "ready": True,
                **self._ports,
                "provider": models.provider,
                "instances": instances,
                "models": names,
                "precisions": {model.bundle.name: model.bundle.precision for model in models},
            }
        )
        log.info("serving %s on %s, gRPC %s", ", ".join(names), models.provider, self._ports["grpc"])

    async def retire(self, failing: asyncio.Task[None]) -> None:
        """Report NOT_SERVING and still answer calls, for `lame_duck_seconds` or until the server has failed."""
        seconds = self._config.lame_duck_seconds
        if not seconds or self._gate.closed is not None:
            return
        self._health.retire()
        log.info("stopping: health is NOT_SERVING, and calls are taken for another %g s", seconds)
        leaving = min(LEAVING_SECONDS, seconds / 2)
        await asyncio.wait({failing}, timeout=seconds - leaving)
        # Clients that do not watch the health notice when a connection without calls is closed.
        self._closing = asyncio.create_task(self._close_idle())
        await asyncio.wait({failing}, timeout=leaving)

    async def _close_idle(self, delay: float = 0.0) -> None:
        await asyncio.sleep(delay)  # watchers of the health get the change
        await close_idle(self._port, self._gate.peers, self._gate.closed_peers)

    async def drain(self) -> bool:
        """Refuse new calls and finish those in progress; return whether all were finished in time."""
        for task in (self._probing, self._store_monitoring):
            if task is not None:
                task.cancel()
        self._gate.closed = "the server is draining"
        self._health.drain()
        log.info("draining: calls in progress have %g s", self._config.drain_seconds)
        # Live audio does not end by itself, so streams get half of the time.
        for end in (self._service.end_streams, self._transfers.end):
            asyncio.get_running_loop().call_later(self._config.drain_seconds / 2, end)
        if self._closing is None:
            self._closing = asyncio.create_task(self._close_idle(SENT_SECONDS))
        finished = await self._gate.emptied(max(self._config.drain_seconds, SENT_SECONDS))
        self._closing.cancel()
        await close_port(self._port, CLOSING_SECONDS)
        if self._http is not None:
            await self._http.close(CLOSING_SECONDS if finished else 0)
        await self._grpc.stop(CLOSING_SECONDS if finished else 0)
        await self._observer.close()
        await self._models.close()
        self._scheduler.close()
        self._codec.shutdown(wait=False, cancel_futures=True)
        self._decoders.unsubscribe(self.metrics.count_decoder_restart)
        self._decoders.close()
        self._speakers.close()
        if self._journal is not None:
            self._journal.close()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self._tracing is not None:
            await self._tracing.close()
        log.log(logging.INFO if finished else logging.WARNING, "stopped%s", "" if finished else ", calls were aborted")
        return finished


def _transfers(config: Config, held_bytes: int) -> MessageTransfer:
    return MessageTransfer(config.transfer_seconds, config.max_message_bytes, held_bytes)


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, and clear it; return False if it is not set within `seconds`, 0 for no limit."""
    try:
        async with asyncio.timeout(seconds or None):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return the events of the signals to stop, and of the signal to read files again."""
    stop, hangup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(_on_signal, stop, number))
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    return stop, hangup


def _on_signal(stop: asyncio.Event, number: int) -> None:
    if stop.is_set():
        log.warning("second signal: ending now")
        os._exit(128 + number)
    stop.set()
