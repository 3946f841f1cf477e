"""Identification, free of any transport: a query in, answers out, or a `RequestError`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.config import Config
from speakerlens.serving.context import current_context
from speakerlens.serving.errors import Reason, RequestError, ResourceExhaustedError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Model, Models
from speakerlens.serving.pipeline.answers import Answer, Identification, answer_of
from speakerlens.serving.pipeline.concurrency import FULL
from speakerlens.serving.pipeline.decode import AudioInfo, DurationLimit
from speakerlens.serving.pipeline.observer import MonitoredAnswer, Observer
from speakerlens.serving.pipeline.query import MonitoringScope, Query, QueryOptions, target_of
from speakerlens.serving.pipeline.reply_time import ReplyTimeEstimator
from speakerlens.serving.pipeline.session import RequestSession
from speakerlens.serving.pipeline.timing import Stopwatch
from speakerlens.serving.pipeline.windows import Window, Windowing, WindowReader, windowing

T = TypeVar("T")

# When to ask again where all places are taken; they come free as often as requests are answered.
NO_PLACE_SECONDS = 0.1
# Those of live streams come free only as people stop talking.
NO_STREAM_SECONDS = 2.0


class Pipeline:
    """The core of the service.

    Args:
        models: what is loaded.
        config: limits.
        metrics: hears of phases, answers and audio.
        codec: threads that decode and encode, so that the event loop never does.
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
        self._live = 0
        self._reply_time = ReplyTimeEstimator()

    def min_samples(self, model: Model) -> int:
        """Shortest audio that a model answers here, in samples of 16 kHz."""
        return max(model.bundle.min_samples, round(self._config.min_seconds * SAMPLE_RATE))

    def shape(self, models: Sequence[Model]) -> Windowing:
        """How audio is cut for these models."""
        return windowing(self._config.window_seconds, (model.bundle for model in models))

    def longest(self, question: QueryOptions) -> DurationLimit:
        """How much audio a question may be about."""
        if question.explain is None or self._config.max_explained_seconds >= self._config.max_seconds:
            return DurationLimit(self._config.max_seconds)
        return DurationLimit(self._config.max_explained_seconds, " where maps are asked for")

    async def identify(self, query: Query, models: Sequence[Model]) -> Identification:
        """Answers a query with each of `models`, which `self.models.lease` gave.

        Raises:
            RequestError: whatever is wrong with the query, or too much for the server now.
        """
        with self.hearing(query, models) as hearing:
            least = max(self.min_samples(model) for model in models)
            reader = WindowReader(query.audio, self.longest(query), self.shape(models), least)
            async for _ in hearing.windows(self.read(reader, hearing.watch)):
                pass
            return await self.whole(query, models, hearing, reader.info)

    @contextmanager
    def hearing(
        self, question: QueryOptions, models: Sequence[Model], whole: Stopwatch | None = None, live: bool = False
    ) -> Iterator[RequestSession]:
        """A place among the requests in work, once the question makes sense and one of its models has room.

        Time is noted by `whole` as well, where what is heard is part of something. What is `live` lasts for as long as
        its client likes, and so gets half of the places.

        Raises:
            RequestError: the question is wrong, or too much for the server now.
        """
        targets = [target_of(question, model) for model in models]
        if self._in_flight >= self._config.max_in_flight:
            raise ResourceExhaustedError(
                Reason.IN_FLIGHT,
                f"{self._config.max_in_flight} requests are in work already; try again later",
                NO_PLACE_SECONDS,
            )
        most = max(1, self._config.max_in_flight // 2)
        if live and self._live >= most:
            raise ResourceExhaustedError(
                Reason.IN_FLIGHT, f"{most} live streams are in work already; try again later", NO_STREAM_SECONDS
            )
        question = replace(question, deadline=self._reply_time.compute_deadline(question.deadline))
        _check_room(question, models)
        self._in_flight += 1
        self._live += live
        listen = None if question.monitoring is MonitoringScope.NOTHING else self.observer.measure_sound
        asked = list(zip(models, targets, strict=True))
        # Of live audio each window is an answer.
        keep = not live and self.observer.keeps_windows
        hearing = RequestSession(asked, question, self.run_in_thread, Stopwatch(whole), listen, keep)
        try:
            yield hearing
            if hearing.computed_at is not None and not live:
                self._reply_time.gone(time.monotonic() - hearing.computed_at)
        finally:
            self._in_flight -= 1
            self._live -= live
            for model, error in hearing.failures:
                self.count_failure(model, error, alone=len(hearing.failures) == len(models))

    async def whole(
        self, question: QueryOptions, models: Sequence[Model], hearing: RequestSession, info: AudioInfo
    ) -> Identification:
        """The answers for everything heard, once all of it is."""
        said = await hearing.whole()
        with hearing.watch.encoding():
            answers = await self.run_in_thread(
                lambda: tuple(answer_of(question, model, each) for model, each in zip(models, said, strict=True))
            )
        result = Identification(answers, info, hearing.watch.timings())
        self._count(question, result)
        answered = MonitoredAnswer(models, said, hearing.sounds, info.seconds, hearing.kept, info.clipped_share)
        self.observer.record(question, answered)
        return result

    async def run_in_thread(self, function: Callable[[], T], /) -> T:
        """Runs a function in a thread of the codec."""
        return await asyncio.get_running_loop().run_in_executor(self._codec, function)

    async def read(self, reader: WindowReader, watch: Stopwatch) -> AsyncIterator[Window]:
        """The windows of a recording, decoded as they are asked for."""
        while True:
            with watch.decoding():
                window = await self.run_in_thread(reader.next)
            if window is None:
                return
            yield window

    def _count(self, question: QueryOptions, result: Identification) -> None:
        call = current_context.get(None)
        for phase, seconds in vars(result.timings).items():
            self._metrics.page.observe(self._metrics.phase.labels(phase), seconds, call.id if call else None)
        if call is not None:
            call.report_phases(vars(result.timings))
        for answer in result.answers:
            if isinstance(answer, Answer):
                self._metrics.answers.labels(answer.variant, "explain" if question.explain else "predict").inc()
        self._metrics.audio.inc(result.audio.seconds)

    def count_failure(self, model: Model, error: Exception, alone: bool = True) -> None:
        """Counts that a model failed that was asked; where it was `alone` without room, the request is refused."""
        code = error.code if isinstance(error, RequestError) else "INTERNAL"
        if not (alone and isinstance(error, RequestError) and error.reason in FULL):
            self._metrics.model_failures.labels(model.bundle.variant, code).inc()


def _check_room(question: QueryOptions, models: Sequence[Model]) -> None:
    """Refuses early where no model has room; where only some have none, those fail by name when they are asked.

    Raises:
        RequestError: that of the first model.
    """
    refusals: list[RequestError] = []
    for model in models:
        queue = model.explain if question.explain else model.predict
        try:
            queue.check_room(question.deadline, question.priority)
        except RequestError as error:
            refusals.append(error)
    if len(refusals) == len(models):
        raise refusals[0]
