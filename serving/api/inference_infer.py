"""Answers what a ModelInfer call asks: every row is a job of its own, in the queues that `Identify` uses."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speakerlens.protos.inference import inference_pb2 as pb
from speakerlens.serving.api.inference_request import Ask, Limits, read
from speakerlens.serving.api.inference_response import written
from speakerlens.serving.api.inference_tensors import AUDIO
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.config import Config
from speakerlens.serving.context import current_context
from speakerlens.serving.engine.graphs import PREDICTED, Job, Prediction
from speakerlens.serving.errors import InvalidArgumentError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.decode import DurationLimit, RawAudio, check_minimum, decode
from speakerlens.serving.pipeline.enroll import spoken_of
from speakerlens.serving.pipeline.explain import ExplainOptions
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.observer import MonitoredAnswer
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.session import ModelOutput
from speakerlens.serving.pipeline.windows import cut


class Row(NamedTuple):
    """What a model says of one row, how many seconds its batch took, and what that tells of robustness."""

    prediction: Prediction
    inference_s: float
    question: QueryOptions
    answered: MonitoredAnswer


class Inference:
    """The core of the protocol's one call that computes.

    Args:
        identifier: the core of the typed calls, whose limits hold here too.
        config: limits.
        metrics: hears of phases, answers and audio.
    """

    def __init__(self, identifier: Pipeline, config: Config, metrics: Metrics) -> None:
        self.models = identifier.models
        self._identifier = identifier
        self._metrics = metrics
        # Maps may be asked for of every row, and a row is there as a whole anyway.
        self._longest = DurationLimit(min(config.max_seconds, config.max_explained_seconds))
        self._limits = Limits(config.max_batch, round(self._longest.seconds * SAMPLE_RATE))

    async def infer(self, request: pb.ModelInferRequest, model: Model, deadline: float | None) -> pb.ModelInferResponse:
        """Answers a request to a leased model, and counts it in the model's statistics.

        Args:
            request: as it came.
            model: the one it names.
            deadline: of the call, on the clock of `time.monotonic`, or None.

        Raises:
            RequestError: whatever is wrong with the request, or too much for the server now.
        """
        started = time.monotonic()
        try:
            response, phases = await self._infer(request, model, deadline)
        except BaseException:  # also where the caller has gone
            model.statistics.failed.add(time.monotonic() - started)
            raise
        model.statistics.record_answer(time.monotonic() - started, phases)
        return response

    async def _infer(
        self, request: pb.ModelInferRequest, model: Model, deadline: float | None
    ) -> tuple[pb.ModelInferResponse, Mapping[str, float]]:
        started = time.monotonic()
        ask, jobs = await self._identifier.run_in_thread(lambda: self._heard(request, model, deadline))
        heard = time.monotonic()
        rows = await self._computed(ask, model, jobs)
        computed = time.monotonic()
        response = await self._identifier.run_in_thread(lambda: _answer(request, ask, model, rows))
        # Rows wait for one another; of several batches, the longest counts, and the others are waiting.
        inference = min(max(row.inference_s for row in rows), computed - heard)
        phases = {
            "decode": heard - started,
            "queue": computed - heard - inference,
            "inference": inference,
            "encode": time.monotonic() - computed,
        }
        self._count(model, ask, phases)
        for row in rows:
            self._identifier.observer.record(row.question, row.answered)
        return response, phases

    def _heard(self, request: pb.ModelInferRequest, model: Model, deadline: float | None) -> tuple[Ask, list[Job]]:
        ask = read(request, model.bundle, self._limits, deadline)
        rows = enumerate(zip(ask.audio, ask.lengths, ask.targets, strict=True))
        return ask, [
            Job(self._checked(row, samples[:length], model), int(target)) for row, (samples, length, target) in rows
        ]

    def _checked(self, row: int, samples: NDArray[np.float32], model: Model) -> NDArray[np.float32]:
        """The samples of a row, checked as the typed calls check theirs."""
        try:
            waveform = decode(RawAudio(samples.tobytes(), "float32", SAMPLE_RATE, 1), self._longest)
            check_minimum(waveform.info, len(waveform.samples), self._identifier.min_samples(model))
        except InvalidArgumentError as error:
            _, _, why = str(error).partition(": ")
            raise InvalidArgumentError(error.reason, f"inputs.{AUDIO}, row {row}: {why}") from error
        return waveform.samples

    async def _computed(self, ask: Ask, model: Model, jobs: Sequence[Job]) -> list[Row]:
        """Every row's answer; at the first error the other rows leave their queue."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._row(ask, model, row, job)) for row, job in enumerate(jobs)]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _row(self, ask: Ask, model: Model, row: int, job: Job) -> Row:
        speaker = None if job.target == PREDICTED else model.bundle.speakers[job.target]
        explain = ExplainOptions(target_speaker=speaker) if ask.explains else None
        question = QueryOptions(explain=explain, priority=ask.priority, deadline=ask.deadline)
        where = f"inputs.{AUDIO}, row {row}"
        with spoken_of("audio", where), self._identifier.hearing(question, [model]) as hearing:
            async for _ in hearing.windows(cut(job.audio, self._identifier.shape([model]))):
                pass
            [said] = await hearing.whole()
        assert isinstance(said, ModelOutput), "a model that fails alone fails the request"
        seconds = len(job.audio) / SAMPLE_RATE
        answered = MonitoredAnswer([model], [said], hearing.sounds, seconds, hearing.kept)
        return Row(said.prediction, hearing.watch.timings().inference, question, answered)

    def _count(self, model: Model, ask: Ask, phases: Mapping[str, float]) -> None:
        seconds = float(ask.lengths.sum()) / SAMPLE_RATE
        call = current_context.get()
        for phase, spent in phases.items():
            self._metrics.page.observe(self._metrics.phase.labels(phase), spent, call.id)
        self._metrics.answers.labels(model.bundle.variant, "explain" if ask.explains else "predict").inc(len(ask.audio))
        self._metrics.audio.inc(seconds)
        call.report_phases(phases)


def _answer(request: pb.ModelInferRequest, ask: Ask, model: Model, rows: Sequence[Row]) -> pb.ModelInferResponse:
    response = written(model.bundle, [row.prediction for row in rows], ask.audio.shape[1], ask.outputs)
    response.id = request.id
    return response
