"""Measure every answer, and pick some for re-inference, without delaying or failing a request.

Sound is measured for every answer, in the codec's threads while the device computes; the rest in one background thread
after the answer has been sent.
"""

import asyncio
import contextvars
import logging
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.prediction import scores
from speakerlens.measures.saliency import concentration, deletion_index, estimated_interference
from speakerlens.measures.sound import Sound, measure_sound
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.config import Config
from speakerlens.serving.context import current_context
from speakerlens.serving.engine.graphs import ExplainedPrediction, Prediction, has_fused
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.metrics import Metrics, Robustness
from speakerlens.serving.models.registry import Model, Models
from speakerlens.serving.pipeline.aggregate import ModelOutput, WindowOutput
from speakerlens.serving.pipeline.answers import known
from speakerlens.serving.pipeline.explain import displayed
from speakerlens.serving.pipeline.observer import MonitoredAnswer, MonitoringScope
from speakerlens.serving.robustness.drift import Drift
from speakerlens.serving.robustness.sampling import Background, Sample, SampleTasks

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

# Answers are handed to the thread together: each handover takes the interpreter's lock from the event loop.
GATHER_SECONDS = 0.02
MOST_TOGETHER = 12
# Such groups that wait; each answer may hold a window of audio. Measuring takes a fraction of the inference time, so
# more than a few wait only on an overloaded machine.
MOST_WAITING = 8


class RobustnessObserver:
    """The pipeline's `Observer`: measures answers, tracks drift, samples. Event-loop only.

    Args:
        config: shares to sample, length of the drift windows, whether metrics are served at all.
        metrics: receives the measures.
        models: loaded models.
        scheduler: of the device that samples are computed on while it is idle.
    """

    def __init__(self, config: Config, metrics: Metrics, models: Models, scheduler: Scheduler) -> None:
        self._metrics = metrics.robustness
        self._models = models
        self._executor = BoundedExecutor(metrics.robustness)
        self._drift = Drift(config.drift_samples)
        metrics.page.registry.register(self._drift)
        self._meter = AnswerMeter(metrics, self._drift)
        self._tasks = SampleTasks(models, metrics.robustness, self._measure_map)
        self._saliency, self._shadow = Sampler(config.saliency_share), Sampler(config.shadow_share)
        self._background = Background(scheduler, metrics.robustness)
        self._gathered: list[tuple[MonitoredAnswer, str | None]] = []
        self._handing_over: asyncio.TimerHandle | None = None
        self._variants: set[str] = set()
        self._enabled = config.metrics  # without a metrics page, measuring is wasted work
        models.subscribe(self._on_change)
        self._on_change()

    @property
    def keeps_windows(self) -> bool:
        """Whether any answer may be sampled."""
        return self._enabled and bool(self._saliency.share or self._shadow.share)

    def measure_sound(self, samples: NDArray[np.float32], /) -> Sound | None:
        """Return the measures of a window, float32 [n] at 16 kHz; None if that failed. Thread-safe."""
        try:
            return measure_sound(samples)
        except Exception:  # no error may end the request
            log.exception("the sound of a request could not be measured")
            self._executor.count("failed")
            return None

    def record(self, answer: MonitoredAnswer, /) -> None:
        """Measure and count an answer in the background; to be called within the call that is answered."""
        if not self._enabled or answer.scope is MonitoringScope.NOTHING:
            return
        call = current_context.get(None)
        request_id = call.id if call else None
        self._gathered.append((answer, request_id))
        if len(self._gathered) == 1:
            loop = asyncio.get_running_loop()
            self._handing_over = loop.call_later(GATHER_SECONDS, self._hand_over, context=contextvars.Context())
        elif len(self._gathered) == MOST_TOGETHER:
            self._hand_over()
        if answer.scope is MonitoringScope.ANSWER and answer.kept is not None:
            self._sample(answer, answer.kept, request_id)

    async def close(self) -> None:
        """Drop waiting samples and stop the background thread."""
        await self._background.close()
        self._hand_over()
        self._executor.close()

    def _hand_over(self) -> None:
        """Have the gathered answers measured."""
        if self._handing_over is not None:
            self._handing_over.cancel()
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._executor.submit(len(gathered), self._measure_answers, gathered)

    def _on_change(self) -> None:
        """Follow the loaded models; counts of a variant that is gone remain."""
        bundles = [model.bundle for model in self._models]
        self._drift.set_bundles(bundles)
        for variant in {bundle.variant for bundle in bundles if bundle.has_classifier} - self._variants:
            if self._shadow.share:
                for other in self._variants:
                    self._metrics.add_pair(*sorted((variant, other)))
            self._variants.add(variant)

    def _sample(self, answer: MonitoredAnswer, kept: WindowOutput, request_id: str | None) -> None:
        saliency = not answer.explained and self._saliency.sample()
        naming = {model.bundle.variant for model in self._models if model.bundle.has_classifier}
        shadow = len(naming) > 1 and self._shadow.sample()
        if not (saliency or shadow):
            return
        predictions = tuple(
            (model.bundle, output.prediction)
            for model, output in zip(answer.models, kept.outputs, strict=True)
            if isinstance(output, ModelOutput)
        )
        sample = Sample(kept.window.samples, predictions, kept.sound, request_id)
        if saliency:
            self._background.offer("saliency", self._tasks.explain, sample)
        if shadow:
            self._background.offer("shadow", self._tasks.compare, sample)

    async def _measure_map(self, model: Model, prediction: ExplainedPrediction, request_id: str | None) -> None:
        run = asyncio.get_running_loop().run_in_executor
        await run(self._executor.thread, self._meter.record_map, model, prediction, request_id)

    def _measure_answers(self, gathered: Sequence[tuple[MonitoredAnswer, str | None]]) -> None:
        for answer, request_id in gathered:
            self._measure_answer(answer, request_id)

    def _measure_answer(self, answer: MonitoredAnswer, request_id: str | None) -> None:
        try:
            self._meter.record_answer(answer, request_id)
            self._executor.count("done")
        except Exception:  # the answer has been sent already
            log.exception("an answer could not be measured")
            self._executor.count("failed")


class AnswerMeter:
    """Measures answers and counts the results; thread-safe.

    Args:
        metrics: receives the measures.
        drift: receives the same measures, for comparison with the bundle's baseline.
    """

    def __init__(self, metrics: Metrics, drift: Drift) -> None:
        self._page = metrics.page
        self._robustness = metrics.robustness
        self._drift = drift

    def record_answer(self, answer: MonitoredAnswer, request_id: str | None) -> None:
        """Measure and count an answer."""
        sound = answer.sounds.whole
        if sound is not None and answer.clipped_share is not None:
            sound = replace(sound, clipped_share=answer.clipped_share)
        if sound is not None:
            self._record_sound(sound, answer.seconds, request_id)
        for model, output in zip(answer.models, answer.outputs, strict=True):
            if isinstance(output, Exception):
                continue
            if not model.bundle.has_classifier:  # its traffic is embedded, compared and searched
                if sound is not None:
                    self._drift.add(model.bundle, drift_measures(sound, answer.seconds))
                continue
            if answer.scope is not MonitoringScope.ANSWER:
                continue
            self._record_prediction(model, output.prediction, request_id)
            if sound is not None:
                self._drift.add(model.bundle, drift_measures(sound, answer.seconds))
            explained = output.prediction
            # The map of a speaker chosen by the caller does not show how the model reached its own answer.
            if (
                isinstance(explained, ExplainedPrediction)
                and explained.target == explained.logits.argmax()
                and has_fused(model.bundle, explained)
            ):
                self.record_map(model, explained, request_id)

    def record_map(self, model: Model, prediction: ExplainedPrediction, request_id: str | None) -> None:
        """Measure and count the fused map of a model's top speaker."""
        bundle, saliency = model.bundle, self._robustness.saliency
        index, gini = map_measures(bundle, prediction)
        self._page.observe(saliency.deletion_index.labels(bundle.variant), index, request_id)
        self._page.observe(saliency.concentration.labels(bundle.variant), gini, request_id)
        self._drift.add(bundle, {"deletion_index": index, "concentration": gini})

    def _record_sound(self, sound: Sound, seconds: float, request_id: str | None) -> None:
        to = self._robustness.input
        for histogram, value in (
            (to.snr, sound.snr_db),
            (to.speech, sound.speech_share),
            (to.clipped, sound.clipped_share),
            (to.level, sound.level_dbfs),
            (to.bandwidth, sound.bandwidth_hz),
            (to.duration, seconds),
        ):
            self._page.observe(histogram, value, request_id)

    def _record_prediction(self, model: Model, prediction: Prediction, request_id: str | None) -> None:
        bundle, to = model.bundle, self._robustness.prediction
        logit = float(prediction.logits.max())
        found = scores(prediction.logits, bundle.temperature)
        for histogram, value in (
            (to.top1_probability, found.top1_probability),
            (to.margin, found.margin),
            (to.entropy, found.entropy),
        ):
            self._page.observe(histogram.labels(bundle.variant), value, request_id)
        to.decisions.labels(bundle.variant, "known" if known(model, prediction) else "unknown").inc()
        self._drift.add(bundle, found._asdict() | {"best_logit": logit})


def drift_measures(sound: Sound, seconds: float) -> dict[str, float]:
    """Return the sound measures under the baseline's names; `seconds` replaces a sum over overlapping windows."""
    return {**asdict(sound), "seconds": seconds}


def map_measures(bundle: Bundle, prediction: ExplainedPrediction) -> tuple[float, float]:
    """Return deletion index (by the estimated noise floor) and concentration of the fused map; NaN where undefined."""
    fused = displayed(bundle, prediction, "fused")
    prediction.shown.clear()  # its last use; predictions of a stream's windows are kept
    return deletion_index(fused, estimated_interference(prediction.features)), concentration(fused)


class Sampler:
    """Chooses a random share of the answers.

    Args:
        share: to choose, 0 to 1.
        chance: draws from [0, 1). Random, as a regular choice would always pick the same of several callers that
            alternate.
    """

    def __init__(self, share: float, chance: Callable[[], float] = random.random) -> None:
        self.share = share
        self._chance = chance

    def sample(self) -> bool:
        """Return whether the next answer is chosen."""
        return self.share > 0 and self._chance() < self.share


class BoundedExecutor:
    """One thread with a bounded queue, apart from the decoding threads; what does not fit is dropped and counted.

    Args:
        metrics: counts the outcomes.
    """

    def __init__(self, metrics: Robustness) -> None:
        self._metrics = metrics
        self._room = threading.Semaphore(MOST_WAITING)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="measuring")

    def submit(
        self, measurements: int, function: Callable[P, T], *arguments: P.args, **named: P.kwargs
    ) -> "Future[T] | None":
        """Queue a call that measures so many answers; None if it is dropped."""
        if not self._room.acquire(blocking=False):
            self.count("dropped", measurements)
            return None
        try:
            future = self.thread.submit(function, *arguments, **named)
        except RuntimeError:  # closed, while a call that is being cut short still runs
            return None
        future.add_done_callback(lambda _: self._room.release())
        return future

    def count(self, outcome: str, measurements: int = 1) -> None:
        """Count the outcome of measurements."""
        self._metrics.background.labels("measure", outcome).inc(measurements)

    def close(self) -> None:
        """Stop the thread; waiting calls are cancelled."""
        self.thread.shutdown(wait=False, cancel_futures=True)
