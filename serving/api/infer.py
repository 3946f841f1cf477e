"""ModelInfer: every row of a request is a job of its own, in the queues that `Identify` uses."""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from speakerlens.containers import Extent
from speakerlens.protos.inference import inference_pb2 as pb
from speakerlens.serving.api.inference_messages import AUDIO, infer_response_of, stages_of
from speakerlens.serving.api.inference_request import InferRequest, Limits, infer_request_of
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.config import Config
from speakerlens.serving.context import current_context
from speakerlens.serving.engine.admission import Admitted
from speakerlens.serving.engine.graphs import PREDICTED, Job, Prediction
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import ModelOutput
from speakerlens.serving.pipeline.concurrency import map_concurrent
from speakerlens.serving.pipeline.decode import checked_samples
from speakerlens.serving.pipeline.explain import ExplainOptions
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.observer import MonitoredAnswer
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.samples import DurationLimit, check_minimum
from speakerlens.serving.pipeline.windows import cut


class Row(NamedTuple):
    """The prediction for one row, whether it holds speech, its batch's seconds, and what the observer takes of it."""

    prediction: Prediction
    speech: bool
    inference_s: float
    monitored: MonitoredAnswer


class Inference:
    """Answer ModelInfer.

    Args:
        pipeline: computes the rows; its limits apply.
        config: limits.
        metrics: counts phases, answers and audio.
    """

    def __init__(self, pipeline: Pipeline, config: Config, metrics: Metrics) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        # The whole row is in memory anyway, and any row may ask for maps.
        self._limit = DurationLimit(min(config.max_seconds, config.max_explained_seconds))
        self._limits = Limits(config.max_batch, round(self._limit.seconds * SAMPLE_RATE))

    async def infer(self, request: pb.ModelInferRequest, model: Model, deadline: float | None) -> pb.ModelInferResponse:
        """Answer a request with a leased model, and count it in the model's statistics.

        Args:
            request: as received.
            model: the one it names.
            deadline: of the call, on the clock of `time.monotonic`, None without one.

        Raises:
            RequestError: the request is invalid, or the server is overloaded.
        """
        started = time.monotonic()
        try:
            response, phases = await self._infer(request, model, deadline)
        except BaseException:  # also a cancelled call
            model.statistics.failed.add(time.monotonic() - started)
            raise
        model.statistics.record_answer(time.monotonic() - started, phases)
        return response

    async def _infer(
        self, request: pb.ModelInferRequest, model: Model, deadline: float | None
    ) -> tuple[pb.ModelInferResponse, Mapping[str, float]]:
        started = time.monotonic()
        read, jobs = await self._pipeline.run_in_thread(lambda: self._read(request, model, deadline))
        decoded = time.monotonic()
        explain = ExplainOptions(stages_of(read.outputs)) if read.explains else None
        options = QueryOptions(explain=explain, priority=read.priority, deadline=read.deadline)
        extents = [Extent("raw", len(job.audio), SAMPLE_RATE, 1) for job in jobs]
        with self._pipeline.admit(options, [model], extents) as admitted:
            rows = await map_concurrent(
                list(enumerate(jobs)), lambda item: self._compute_row(read, model, admitted, *item), len(jobs)
            )
        computed = time.monotonic()
        response = await self._pipeline.run_in_thread(lambda: _response(request, read, model, rows))
        # Rows run in batches one after the other: the longest batch counts as inference, the others as queue.
        inference = min(max(row.inference_s for row in rows), computed - decoded)
        phases = {
            "decode": decoded - started,
            "queue": computed - decoded - inference,
            "inference": inference,
            "encode": time.monotonic() - computed,
        }
        self._count(model, read, rows, phases)
        for row in rows:
            self._pipeline.observer.record(row.monitored)
        return response, phases

    def _read(
        self, request: pb.ModelInferRequest, model: Model, deadline: float | None
    ) -> tuple[InferRequest, list[Job]]:
        read = infer_request_of(request, model.bundle, self._limits, deadline)
        least = self._pipeline.min_samples(model)
        jobs = []
        for row, (samples, length, target) in enumerate(zip(read.audio, read.lengths, read.targets, strict=True)):
            waveform = checked_samples(samples[:length], self._limit, _field(row))
            check_minimum(waveform.info, len(waveform.samples), least, _field(row))
            jobs.append(Job(waveform.samples, int(target)))
        return read, jobs

    async def _compute_row(self, read: InferRequest, model: Model, admitted: Admitted, row: int, job: Job) -> Row:
        speaker = None if job.target == PREDICTED else model.bundle.speakers[job.target]
        explain = ExplainOptions(stages_of(read.outputs), target_speaker=speaker) if read.explains else None
        query = QueryOptions(explain=explain, priority=read.priority, deadline=read.deadline, field=_field(row))
        with self._pipeline.session(query, [model], admitted) as session:
            async for _ in session.windows(cut(job.audio, self._pipeline.windowing([model]))):
                pass
            [output] = await session.whole()
        assert isinstance(output, ModelOutput), "a model that fails alone fails the request"
        seconds = len(job.audio) / SAMPLE_RATE
        monitored = MonitoredAnswer(
            query.monitoring, read.explains, [model], [output], session.sounds, seconds, session.kept
        )
        return Row(output.prediction, session.speech, session.stopwatch.timings().inference, monitored)

    def _count(self, model: Model, read: InferRequest, rows: Sequence[Row], phases: Mapping[str, float]) -> None:
        call = current_context.get()
        for phase, spent in phases.items():
            self._metrics.page.observe(self._metrics.phase.labels(phase), spent, call.id)
        kind = "explain" if read.explains else "predict"
        self._metrics.answers.labels(model.bundle.variant, kind).inc(len(read.audio))
        for row in rows:
            self._metrics.robustness.input.recordings.labels("found" if row.speech else "none").inc()
        self._metrics.audio.inc(float(read.lengths.sum()) / SAMPLE_RATE)
        call.report_phases(phases)


def _field(row: int) -> str:
    return f"inputs.{AUDIO}, row {row}"


def _response(
    request: pb.ModelInferRequest, read: InferRequest, model: Model, rows: Sequence[Row]
) -> pb.ModelInferResponse:
    response = infer_response_of(
        model.bundle, [row.prediction for row in rows], read.audio.shape[1], read.outputs, read.classes
    )
    response.id = request.id
    response.parameters["speech"].string_param = ",".join("true" if row.speech else "false" for row in rows)
    return response
