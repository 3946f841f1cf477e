"""Identification, independent of any protocol: a query in, answers out, or a `RequestError`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.config import Config
from speakerlens.serving.context import Stopwatch, current_context
from speakerlens.serving.engine.graphs import PREDICTED
from speakerlens.serving.engine.latency import LatencyEstimator
from speakerlens.serving.errors import (
    InvalidArgumentError,
    NotFoundError,
    Reason,
    RequestError,
    ResourceExhaustedError,
    listed,
    quoted,
)
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Model, Models
from speakerlens.serving.pipeline.answers import Answer, Identification, answer_of
from speakerlens.serving.pipeline.concurrency import FULL
from speakerlens.serving.pipeline.decode import AudioInfo, DurationLimit
from speakerlens.serving.pipeline.explain import Resolution
from speakerlens.serving.pipeline.observer import MonitoredAnswer, MonitoringScope, Observer
from speakerlens.serving.pipeline.query import DEFAULT_TOP_K, Query, QueryOptions
from speakerlens.serving.pipeline.session import RequestSession
from speakerlens.serving.pipeline.windows import Window, Windowing, WindowReader, windowing

T = TypeVar("T")

# When to retry where `max_in_flight` requests are in work, and where half of these are streams, which last longer.
IN_FLIGHT_RETRY_SECONDS = 0.1
STREAM_RETRY_SECONDS = 2.0
# Time set aside for the reply, in multiples of its expected latency: one in the server, one on the network.
REPLY_TIMES = 2
# The most that is set aside, as a share of the time left to the deadline.
MAX_REPLY_SHARE = 0.2


class ReplyTimeEstimator:
    """Estimates the time from a model's result to the client's answer; must be used on the event loop."""

    def __init__(self) -> None:
        self._latency = LatencyEstimator()

    def record(self, seconds: float) -> None:
        """Record the time from the last result of the device to the finished answer."""
        self._latency.record(1, seconds)

    def compute_deadline(self, deadline: float | None) -> float | None:
        """Return the deadline for the device that leaves time for the reply, on the clock of `time.monotonic`."""
        if deadline is None:
            return None
        left = max(0.0, deadline - time.monotonic())
        return deadline - min(REPLY_TIMES * self._latency.cautious_seconds(1), MAX_REPLY_SHARE * left)


class Pipeline:
    """Answer queries with the loaded models.

    Args:
        models: what is loaded.
        config: limits.
        metrics: counts phases, answers and audio.
        codec: threads that decode and encode, so that the event loop does not.
        observer: receives every answer.
    """

    def __init__(
        self, models: Models, config: Config, metrics: Metrics, codec: ThreadPoolExecutor, observer: Observer
    ) -> None:
        self.models = models
        self._config = config
        self._metrics = metrics
        self._codec = codec
        self.observer = observer
        self._in_flight = 0
        self._streams = 0
        self._reply_time = ReplyTimeEstimator()

    def min_samples(self, model: Model) -> int:
        """Return the shortest audio accepted for a model, in samples at 16 kHz."""
        return max(model.bundle.min_samples, round(self._config.min_seconds * SAMPLE_RATE))

    def windowing(self, models: Sequence[Model]) -> Windowing:
        """Return how audio is cut into windows for these models."""
        return windowing(self._config.window_seconds, (model.bundle for model in models))

    def duration_limit(self, query: QueryOptions) -> DurationLimit:
        """Return the longest audio accepted for a query."""
        if query.explain is None or self._config.max_explained_seconds >= self._config.max_seconds:
            return DurationLimit(self._config.max_seconds)
        return DurationLimit(self._config.max_explained_seconds, " where maps are asked for")

    async def identify(self, query: Query, models: Sequence[Model]) -> Identification:
        """Answer a query with each of `models`, which must be leased.

        Raises:
            RequestError: the query or its audio is invalid, or the server is overloaded.
        """
        with self.session(query, models) as session:
            least = max(self.min_samples(model) for model in models)
            reader = WindowReader(query.audio, self.duration_limit(query), self.windowing(models), least, query.field)
            async for _ in session.windows(self.read(reader, session.stopwatch)):
                pass
            return await self.finish(query, models, session, reader.info)

    @contextmanager
    def session(
        self, query: QueryOptions, models: Sequence[Model], parent: Stopwatch | None = None, live: bool = False
    ) -> Iterator[RequestSession]:
        """Enter a request session; it counts as in flight until the block is left.

        Args:
            query: what to compute.
            models: leased.
            parent: stopwatch of the request that the session is a part of.
            live: whether it is a stream, which lasts as long as its client likes; streams get half of the places.

        Raises:
            RequestError: the query is invalid, or the server or all of the models are overloaded.
        """
        targets = [explained_label(query, model) for model in models]
        if self._in_flight >= self._config.max_in_flight:
            raise ResourceExhaustedError(
                Reason.IN_FLIGHT,
                f"{self._config.max_in_flight} requests are in work already; try again later",
                IN_FLIGHT_RETRY_SECONDS,
            )
        most = max(1, self._config.max_in_flight // 2)
        if live and self._streams >= most:
            raise ResourceExhaustedError(
                Reason.IN_FLIGHT, f"{most} live streams are in work already; try again later", STREAM_RETRY_SECONDS
            )
        query = replace(query, deadline=self._reply_time.compute_deadline(query.deadline))
        _check_room(query, models)
        self._in_flight += 1
        self._streams += live
        measure = None if query.monitoring is MonitoringScope.NOTHING else self.observer.measure_sound
        keep = not live and self.observer.keeps_windows  # of a stream, each window is an answer of its own
        pairs = list(zip(models, targets, strict=True))
        session = RequestSession(pairs, query, self.run_in_thread, Stopwatch(parent), measure, keep)
        try:
            yield session
            if session.computed_at is not None and not live:
                self._reply_time.record(time.monotonic() - session.computed_at)
        finally:
            self._in_flight -= 1
            self._streams -= live
            for model, error in session.failures:
                self.count_failure(model, error, alone=len(session.failures) == len(models))

    async def finish(
        self, query: QueryOptions, models: Sequence[Model], session: RequestSession, info: AudioInfo
    ) -> Identification:
        """Return the answers for the whole audio once its windows are computed; count and report them.

        Raises:
            RequestError: every model failed.
        """
        outputs = await session.whole()
        with session.stopwatch.encoding():
            answers = await self.run_in_thread(
                lambda: tuple(answer_of(query, model, each) for model, each in zip(models, outputs, strict=True))
            )
        info = replace(info, speech=session.speech)
        result = Identification(answers, info, session.stopwatch.timings())
        self._count(query, result)
        explained = query.explain is not None
        self.observer.record(
            MonitoredAnswer(
                query.monitoring,
                explained,
                models,
                outputs,
                session.sounds,
                info.seconds,
                session.kept,
                info.clipped_share,
            )
        )
        return result

    async def run_in_thread(self, function: Callable[[], T], /) -> T:
        """Run a function in a thread of the codec and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._codec, function)

    async def read(self, reader: WindowReader, stopwatch: Stopwatch) -> AsyncIterator[Window]:
        """Yield the windows of a recording, decoding each when it is requested."""
        while True:
            with stopwatch.decoding():
                window = await self.run_in_thread(reader.next)
            if window is None:
                return
            yield window

    def _count(self, query: QueryOptions, result: Identification) -> None:
        call = current_context.get(None)
        phases = vars(result.timings)
        for phase, seconds in phases.items():
            self._metrics.page.observe(self._metrics.phase.labels(phase), seconds, call.id if call else None)
        if call is not None:
            call.report_phases(phases)
        for answer in result.answers:
            if isinstance(answer, Answer):
                self._metrics.answers.labels(answer.variant, "explain" if query.explain else "predict").inc()
        self._metrics.audio.inc(result.audio.seconds)
        self._metrics.robustness.input.recordings.labels("found" if result.audio.speech else "none").inc()

    def count_failure(self, model: Model, error: Exception, alone: bool = True) -> None:
        """Count a model's failure, unless it was `alone` and overloaded: then the request counts as refused."""
        code = error.code if isinstance(error, RequestError) else "INTERNAL"
        if not (alone and isinstance(error, RequestError) and error.reason in FULL):
            self._metrics.model_failures.labels(model.bundle.variant, code).inc()


def explained_label(query: QueryOptions, model: Model) -> int:
    """Return the label that a model must explain, or PREDICTED.

    Raises:
        InvalidArgumentError: the query is invalid, in general or for this model.
        NotFoundError: the model does not know the speaker to explain.
    """
    speakers = model.bundle.speakers
    if not 0 <= query.top_k <= len(speakers):
        raise InvalidArgumentError(
            Reason.ARGUMENT,
            f"top_k: {query.top_k}; give 1 to {len(speakers)} ({model.bundle.name} knows {len(speakers)} speakers), "
            f"or 0 for {min(DEFAULT_TOP_K, len(speakers))}",
        )
    if query.explain is None:
        return PREDICTED
    if query.explain.resolution is Resolution.NATIVE and "fused" in query.explain.stages:
        raise InvalidArgumentError(
            Reason.ARGUMENT, "explain.stages: the fused map has no native resolution; name stages of S1 to S4"
        )
    if len(set(query.explain.stages)) < len(query.explain.stages):
        raise InvalidArgumentError(Reason.ARGUMENT, "explain.stages: a stage is asked for twice")
    target = query.explain.target_speaker
    if target is None:
        return PREDICTED
    if target not in speakers:
        raise NotFoundError(
            Reason.UNKNOWN_SPEAKER,
            f"explain.target_speaker: {model.bundle.name} knows no speaker {quoted(target)}; "
            f"it knows {listed(speakers)}",
        )
    return speakers.index(target)


def _check_room(query: QueryOptions, models: Sequence[Model]) -> None:
    """Refuse early if no model has room; if some have, the others fail by name when they are asked.

    Raises:
        RequestError: that of the first model.
    """
    refusals: list[RequestError] = []
    for model in models:
        queue = model.explain if query.explain else model.predict
        try:
            queue.check_room(query.deadline, query.priority)
        except RequestError as error:
            refusals.append(error)
    if len(refusals) == len(models):
        raise refusals[0]
