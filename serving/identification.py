"""Identification, free of any transport: a query in, answers out, or a `RequestError`."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.audio import MODEL_RATE, EncodedAudio, RawAudio, Waveform, check_minimum, decode
from serving.config import Config
from serving.engine import PREDICTED, ExplainedPrediction, Job, Prediction
from serving.errors import InvalidArgumentError, NotFoundError, Reason, ResourceExhaustedError, listed, quoted
from serving.explanation import ExplainOptions, Explanation, Resolution, explain
from serving.lane import Done
from serving.metrics import Metrics
from serving.models import Model, Models, Selector
from serving.tokens import charge
from serving.tracing import tell_phases

T = TypeVar("T")

DEFAULT_TOP_K = 5


@dataclass(frozen=True)
class Query:
    """What a caller asks; `deadline` is on the clock of `time.monotonic`, `top_k` 0 is the default."""

    audio: EncodedAudio | RawAudio
    models: tuple[Selector, ...] = ()
    top_k: int = 0
    explain: ExplainOptions | None = None
    with_embedding: bool = False
    deadline: float | None = None


@dataclass(frozen=True)
class SpeakerScore:
    """One speaker's calibrated probability and pre-softmax score."""

    speaker: str
    probability: float
    logit: float


@dataclass(frozen=True)
class Answer:
    """What one model says; speakers are best first."""

    variant: str
    version: int
    speakers: tuple[SpeakerScore, ...]
    known: bool
    explanation: Explanation | None
    embedding: NDArray[np.float32] | None


@dataclass(frozen=True)
class Timings:
    """Seconds a query spent in each phase; together nearly all of its time."""

    decode: float
    queue: float
    inference: float
    encode: float


@dataclass(frozen=True)
class Identification:
    """Answers in the order asked, and the audio as received."""

    answers: tuple[Answer, ...]
    audio: Waveform
    timings: Timings


class Identifier:
    """The core of the service.

    Args:
        models: what is loaded.
        config: limits.
        metrics: hears of phases, answers and audio.
        codec: threads that decode and encode, so that the event loop never does.
    """

    def __init__(self, models: Models, config: Config, metrics: Metrics, codec: ThreadPoolExecutor) -> None:
        self.models = models
        self._config = config
        self._metrics = metrics
        self._codec = codec
        self._in_flight = 0

    def min_samples(self, model: Model) -> int:
        """Shortest audio that a model answers here, in samples of 16 kHz."""
        return max(model.bundle.min_samples, round(self._config.min_seconds * MODEL_RATE))

    async def identify(self, query: Query, models: Sequence[Model]) -> Identification:
        """Answers a query with each of `models`, which `self.models.lease` gave.

        Raises:
            RequestError: whatever is wrong with the query, or too much for the server now.
        """
        targets = [_check_query(query, model) for model in models]
        if self._in_flight >= self._config.max_in_flight:
            raise ResourceExhaustedError(
                Reason.IN_FLIGHT, f"{self._config.max_in_flight} requests are in work already; try again later"
            )
        for model in models:
            (model.explain if query.explain else model.predict).check_room()
        self._in_flight += 1
        try:
            return await self._identify(query, models, targets)
        finally:
            self._in_flight -= 1

    async def _identify(self, query: Query, models: Sequence[Model], targets: Sequence[int]) -> Identification:
        started = time.monotonic()
        waveform = await self._off_loop(lambda: decode(query.audio, self._config.max_seconds))
        check_minimum(waveform, max(self.min_samples(model) for model in models))
        decoded = time.monotonic()
        done = await _all(
            _compute(query, model, Job(waveform.samples, target)) for model, target in zip(models, targets, strict=True)
        )
        computed = time.monotonic()
        answers = await self._off_loop(
            lambda: tuple(_answer(query, model, each.result) for model, each in zip(models, done, strict=True))
        )
        # Models share the device, so their batches ran one after the other; the rest of the time was waiting.
        inference = min(sum(each.inference_s for each in done), computed - decoded)
        timings = Timings(decoded - started, computed - decoded - inference, inference, time.monotonic() - computed)
        self._count(query, models, waveform, timings)
        return Identification(answers, waveform, timings)

    async def _off_loop(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codec, function)

    def _count(self, query: Query, models: Sequence[Model], waveform: Waveform, timings: Timings) -> None:
        for phase, seconds in vars(timings).items():
            self._metrics.phase.labels(phase).observe(seconds)
        tell_phases(vars(timings))
        for model in models:
            self._metrics.answers.labels(model.bundle.variant, "explain" if query.explain else "predict").inc()
        self._metrics.audio.inc(waveform.seconds)
        charge(waveform.seconds)


def _check_query(query: Query, model: Model) -> int:
    """What can be refused before any work; returns the label to explain."""
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


async def _compute(query: Query, model: Model, job: Job) -> "Done[Prediction] | Done[ExplainedPrediction]":
    if query.explain is None:
        return await model.predict.submit(job, query.deadline)
    return await model.explain.submit(job, query.deadline)


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order, or the first error once the others are cancelled."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _answer(query: Query, model: Model, prediction: Prediction) -> Answer:
    bundle = model.bundle
    check_finite(bundle.name, prediction)
    probabilities = softmax(prediction.logits / bundle.temperature)
    best = np.argsort(-prediction.logits, kind="stable")[: query.top_k or DEFAULT_TOP_K]
    explanation = None
    if query.explain is not None and isinstance(prediction, ExplainedPrediction):
        explanation = explain(bundle, prediction, query.explain)
    return Answer(
        variant=bundle.variant,
        version=bundle.version,
        speakers=tuple(
            SpeakerScore(bundle.speakers[label], float(probabilities[label]), float(prediction.logits[label]))
            for label in best
        ),
        known=float(prediction.logits.max()) / bundle.score_scale >= bundle.threshold,  # in float64, as it was chosen
        explanation=explanation,
        embedding=prediction.embedding if query.with_embedding else None,
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits [n], without overflow."""
    shifted: NDArray[np.float64] = np.exp(logits.astype(np.float64) - float(logits.max()))
    shifted /= shifted.sum()
    return shifted


def check_finite(name: str, prediction: Prediction) -> None:
    """Raises FloatingPointError where an answer holds NaN or infinity."""
    values = [prediction.logits, prediction.embedding]
    if isinstance(prediction, ExplainedPrediction):
        values += [prediction.features, *prediction.saliency]
    if not all(np.isfinite(value).all() for value in values):
        raise FloatingPointError(f"{name} answered with NaN or infinity")
