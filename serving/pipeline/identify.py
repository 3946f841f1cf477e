"""Identification, independent of any protocol: a query in, answers out, or a `RequestError`."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.containers import Extent, extent
from speakerlens.measures.windows import Windowing
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.config import MIN_SECONDS, Config
from speakerlens.serving.context import Stopwatch, current_context
from speakerlens.serving.engine.admission import Admission, Admitted
from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.graphs import PREDICTED, ExplainedPrediction, Job
from speakerlens.serving.engine.queue import Estimate
from speakerlens.serving.errors import (
    InvalidArgumentError,
    NotFoundError,
    Reason,
    RequestError,
    listed,
    quoted,
)
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Model, Models
from speakerlens.serving.pipeline.aggregate import ModelOutput, WindowOutput
from speakerlens.serving.pipeline.answers import Answer, Failed, Identification, answer_of
from speakerlens.serving.pipeline.concurrency import FULL
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.explain import Encoding, ExplainOptions, Resolution
from speakerlens.serving.pipeline.observer import MonitoredAnswer, MonitoringScope, Observer
from speakerlens.serving.pipeline.query import DEFAULT_TOP_K, Query, QueryOptions
from speakerlens.serving.pipeline.samples import (
    MAX_CHANNELS,
    MAX_RATE,
    MIN_RATE,
    SAMPLE_TYPES,
    AudioInfo,
    DurationLimit,
)
from speakerlens.serving.pipeline.session import RequestSession
from speakerlens.serving.pipeline.vad_network import open_network
from speakerlens.serving.pipeline.windows import Window, WindowReader, windowing

T = TypeVar("T")

# An answer about up to this many speakers takes less time than handing it to a thread, with up to so many map values.
INLINE_SPEAKERS = 4096
INLINE_VALUES = 32_768


class Costs:
    """What a request costs apart from the device's work, as measured.

    Attributes:
        decoding: by container, seconds per sample of all channels.
        detecting: seconds of the speech detector per window.
        encoding: by whether maps were asked for, seconds from the last result to the answer per second of audio.
    """

    def __init__(self) -> None:
        self.decoding: defaultdict[str, Estimate] = defaultdict(Estimate)
        self.detecting = Estimate()
        self.encoding = Estimate(), Estimate()


class Pipeline:
    """Answer queries with the loaded models.

    Args:
        models: what is loaded.
        config: limits.
        metrics: counts phases, answers and audio.
        codec: threads that decode and encode, so that the event loop does not.
        observer: receives every answer.
        admission: admits requests; shared with what receives them.
    """

    def __init__(
        self,
        models: Models,
        config: Config,
        metrics: Metrics,
        codec: ThreadPoolExecutor,
        observer: Observer,
        admission: Admission,
    ) -> None:
        self.models = models
        self._config = config
        self._metrics = metrics
        self._codec = codec
        open_network()  # before the first request needs it
        self.observer = observer
        self._admission = admission
        self._costs = Costs()

    def min_samples(self, model: Model) -> int:
        """Return the shortest audio accepted for a model, in samples at 16 kHz."""
        return max(model.bundle.min_samples, round(MIN_SECONDS * SAMPLE_RATE))

    def windowing(self, models: Sequence[Model]) -> Windowing:
        """Return how audio is cut into windows for these models."""
        return windowing(self._config.window_seconds, (model.bundle for model in models))

    def duration_limit(self, query: QueryOptions) -> DurationLimit:
        """Return the longest audio accepted for a query."""
        if query.explain is None or self._config.max_explained_seconds >= self._config.max_seconds:
            return DurationLimit(self._config.max_seconds)
        return DurationLimit(self._config.max_explained_seconds, " where maps are asked for")

    async def identify(
        self,
        query: Query,
        models: Sequence[Model],
        samples: list[tuple[int, NDArray[np.float32]]] | None = None,
        counted: bool = True,
    ) -> Identification:
        """Answer a query.

        Args:
            query: the query.
            models: answer it; leased.
            samples: gets the windows of the audio, each with its first sample, at 16 kHz; None: they are not kept.
            counted: whether the answer counts in the metrics, as that of a caller.

        Raises:
            RequestError: the query or its audio is invalid, or the server is overloaded.
        """
        with (
            self.admit(query, models, [extent_of(query.audio)]) as admitted,
            self.session(query, models, admitted) as session,
        ):
            least = max(self.min_samples(model) for model in models)
            limit, shape = self.duration_limit(query), self.windowing(models)
            reader = WindowReader(query.audio, limit, shape, least, query.field, query.deadline)
            async with aclosing(self._outputs(reader, query.audio, admitted, session)) as outputs:
                async for output in outputs:
                    if samples is not None:
                        samples.append((output.window.start, output.window.samples))
            return await self.finish(query, models, session, reader.info, counted)

    @contextmanager
    def admit(
        self,
        query: QueryOptions,
        models: Sequence[Model],
        audio: Sequence[Extent],
        live: bool = False,
        comparisons: int = 0,
        full_windows: bool = False,
    ) -> Iterator[Admitted]:
        """Admit a request before any of its audio is decoded; it counts as in flight until the block is left.

        Args:
            query: what to compute.
            models: leased.
            audio: what is to be computed; nothing for a stream.
            live: whether it is a stream.
            comparisons: cosines that maps are of: every window is embedded first, and computed again for each.
            full_windows: whether the last window of a recording is a full one, as for enrolment.

        Raises:
            RequestError: the query is invalid, or the server is overloaded.
        """
        for model in models:
            explained_label(query, model)
        shape, most = self.windowing(models), self.duration_limit(query).seconds
        if full_windows:
            shape = shape.with_full_last
        again = comparisons if query.explain is not None else 0
        cost, windows = 0.0, 0
        for each in audio:
            if _refused_by_header(each, most):
                continue  # with the reason, when it is opened
            seconds = min(each.frames / max(1, each.rate), most)
            samples = round(seconds * SAMPLE_RATE)
            count, computed = shape.count(samples), shape.computed(samples)
            windows += count
            cost += self._costs.decoding[each.container].seconds(seconds * each.rate * each.channels)
            cost += self._costs.detecting.seconds(count)
            cost += self._costs.encoding[query.explain is not None].seconds(seconds)
            for model in models:
                cost += (model.predict if again else _queue(query, model)).inference.seconds(computed)
                if again and query.explain is not None:
                    cost += again * model.verifying(query.explain.stages).inference.seconds(computed)
        steps = (1 + again) * windows + 1
        with self._admission.admit(cost, steps, query.deadline, query.priority, live) as admitted:
            yield admitted

    @contextmanager
    def session(
        self, query: QueryOptions, models: Sequence[Model], admitted: Admitted, parent: Stopwatch | None = None
    ) -> Iterator[RequestSession]:
        """Enter a request session.

        Args:
            query: what to compute.
            models: leased.
            admitted: the request that it belongs to.
            parent: stopwatch of the request that the session is a part of.

        Raises:
            RequestError: the query is invalid, or no model has room; a model that has none fails while others answer.
        """
        pairs = [(model, explained_label(query, model)) for model in models]
        refusals = _refusals(query, models)
        if refusals[0] is not None and all(refusals):
            raise refusals[0]
        measure = None if query.monitoring is MonitoringScope.NOTHING else self.observer.measure_sound
        keep = not admitted.live and self.observer.keeps_windows  # of a stream, each window is an answer of its own
        session = RequestSession(
            [(*pair, refusal) for pair, refusal in zip(pairs, refusals, strict=True)],
            query,
            admitted,
            self.run_in_thread,
            Stopwatch(parent),
            measure=measure,
            keep=keep,
        )
        try:
            yield session
        finally:
            for model, error in session.failures:
                self.count_failure(model, error, alone=len(session.failures) == len(models))

    async def finish(
        self,
        query: QueryOptions,
        models: Sequence[Model],
        session: RequestSession,
        info: AudioInfo,
        counted: bool = True,
    ) -> Identification:
        """Return the answers for the whole audio once its windows are computed; count, if `counted`, and report them.

        Raises:
            RequestError: every model failed.
        """
        outputs = await session.whole()
        with session.stopwatch.encoding():
            answers = await self._answers(query, models, outputs)
        whole = session.sounds.whole
        info = replace(
            info,
            speech=session.speech,
            bandwidth_hz=None if whole is None else whole.bandwidth_hz,
            evidence=session.sounds.evidence(info.seconds, info.clipped_share),
        )
        if session.computed_at is not None:
            self._costs.encoding[query.explain is not None].record(info.seconds, time.monotonic() - session.computed_at)
        if session.detected[0]:
            self._costs.detecting.record(*session.detected)
        result = Identification(answers, info, session.stopwatch.timings())
        if counted:
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

    async def _answers(
        self, query: QueryOptions, models: Sequence[Model], outputs: Sequence[ModelOutput | Exception]
    ) -> tuple[Answer | Failed, ...]:
        def answers() -> tuple[Answer | Failed, ...]:
            return tuple(answer_of(query, model, each) for model, each in zip(models, outputs, strict=True))

        few = sum(len(model.bundle.speakers) for model in models) <= INLINE_SPEAKERS
        if few and (query.explain is None or _is_brief(query.explain, outputs)):
            return answers()
        return await self.run_in_thread(answers)

    async def run_in_thread(self, function: Callable[[], T], /) -> T:
        """Run a function in a thread of the codec and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._codec, function)

    async def _outputs(
        self, reader: WindowReader, audio: EncodedAudio | RawAudio, admitted: Admitted, session: RequestSession
    ) -> AsyncGenerator[WindowOutput, None]:
        """Yield the output for each window of a recording, in order."""
        async with aclosing(self.read(reader, audio, admitted, session.stopwatch)) as windows:
            first = await anext(windows)
            if reader.finished:
                yield await session.single(first)
                await anext(windows, None)  # what decoding took
                return
            async with aclosing(session.windows(_chained(first, windows))) as outputs:
                async for output in outputs:
                    yield output

    async def read(
        self, reader: WindowReader, audio: EncodedAudio | RawAudio, admitted: Admitted, stopwatch: Stopwatch
    ) -> AsyncGenerator[Window, None]:
        """Yield the windows of a recording, decoding each when it is requested and when it is the request's turn."""
        decoding = 0.0
        while not reader.finished:
            with stopwatch.decoding():
                async with nullcontext() if reader.brief else admitted.turn():
                    started = time.monotonic()
                    window = reader.next() if reader.brief else await self.run_in_thread(reader.next)
                    decoding += time.monotonic() - started
            if window is not None:
                yield window
        extent, info = extent_of(audio), reader.info
        stated, decoded = extent.frames * extent.channels, info.seconds * info.sample_rate * info.channels
        if decoded / 32 < stated < 32 * decoded:  # nothing is learned from a header that is far from the audio
            self._costs.decoding[extent.container].record(stated, decoding)

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


async def _chained(first: Window, others: AsyncIterator[Window]) -> AsyncIterator[Window]:
    yield first
    async for window in others:
        yield window


def explained_label(query: QueryOptions, model: Model) -> int:
    """Return the label that a model must explain, or PREDICTED.

    Raises:
        InvalidArgumentError: the query is invalid, in general or for this model.
        NotFoundError: the model does not know the speaker to explain.
    """
    speakers = model.bundle.speakers
    if model.bundle.has_classifier and not 0 <= query.top_k <= len(speakers):
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


def _is_brief(explain: ExplainOptions, outputs: Sequence[ModelOutput | Exception]) -> bool:
    """Return whether maps are encoded in less time than handing them to a thread takes."""
    values = sum(
        output.prediction.features.size * len(explain.stages)
        for output in outputs
        if isinstance(output, ModelOutput) and isinstance(output.prediction, ExplainedPrediction)
    )
    return values <= INLINE_VALUES and explain.encoding is not Encoding.PNG


def extent_of(audio: EncodedAudio | RawAudio) -> Extent:
    """Return what audio holds by its header; nothing is decoded."""
    if isinstance(audio, EncodedAudio):
        return extent(audio.data)
    frames = len(audio.data) / (SAMPLE_TYPES[audio.sample_type].itemsize * audio.channels)
    return Extent("raw", frames, audio.sample_rate, audio.channels)


def _refused_by_header(audio: Extent, most: float) -> bool:
    """Return whether decoding refuses audio for its form or for more than `most` seconds, which these headers tell."""
    form = MIN_RATE <= audio.rate <= MAX_RATE and 1 <= audio.channels <= MAX_CHANNELS
    return audio.container in ("raw", "FLAC") and not (form and audio.frames <= most * audio.rate)


def _queue(query: QueryOptions, model: Model) -> Batcher[Job, Any]:
    return model.predict if query.explain is None else model.explaining(query.explain.stages)


def _refusals(query: QueryOptions, models: Sequence[Model]) -> list[RequestError | None]:
    """Return for each model why it has no room for the query now, None where it has."""
    refusals: list[RequestError | None] = []
    for model in models:
        try:
            _queue(query, model).check_room(query.priority)
        except RequestError as error:
            refusals.append(error)
        else:
            refusals.append(None)
    return refusals
