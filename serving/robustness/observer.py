"""Sees to it that every answer is measured, and some are looked into, without delaying or failing any.

Sound is measured by a thread of its own while the device computes; the rest once the answer is on its way.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.sound import Sound, hear
from speakerlens.serving.config import Config
from speakerlens.serving.context import current_context
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Models
from speakerlens.serving.pipeline.query import MonitoringScope, QueryOptions
from speakerlens.serving.pipeline.session import ModelOutput, WindowOutput
from speakerlens.serving.robustness.drift import Drift
from speakerlens.serving.robustness.executor import BoundedExecutor
from speakerlens.serving.robustness.measure import AnswerMeter, MonitoredAnswer
from speakerlens.serving.robustness.sampling import Background, Sample, Sampler
from speakerlens.serving.robustness.shadow import SampleTasks

log = logging.getLogger(__name__)

T = TypeVar("T")


class RobustnessObserver:
    """Told of every answer; lives on the event loop.

    Args:
        config: what is looked into.
        metrics: where it counts.
        models: what is loaded.
        device: what samples are computed on while it is idle.
    """

    def __init__(self, config: Config, metrics: Metrics, models: Models, device: Scheduler) -> None:
        self._metrics = metrics.robustness
        self._models = models
        self._executor = BoundedExecutor(metrics.robustness)
        self._drift = drift = Drift(config.drift_samples)
        metrics.page.registry.register(drift)
        self._meter = AnswerMeter(metrics, drift)
        self._samples = SampleTasks(models, metrics.robustness, self._meter, self._run_in_thread)
        self._saliency, self._shadow = Sampler(config.saliency_share), Sampler(config.shadow_share)
        self._background = Background(device, metrics.robustness)
        self._variants: set[str] = set()
        self._read = config.metrics  # what nobody reads is not worth any work
        models.subscribe(self._on_change)
        self._on_change()

    def _on_change(self) -> None:
        """Follow the loaded models; what was counted of a variant that is gone remains."""
        bundles = [model.bundle for model in self._models]
        self._drift.set_bundles(bundles)
        for variant in {bundle.variant for bundle in bundles} - self._variants:
            if self._shadow.share:
                for other in self._variants:
                    self._metrics.add_pair(*sorted((variant, other)))
            self._variants.add(variant)

    @property
    def samples(self) -> bool:
        """Whether any answer is looked into."""
        return self._read and bool(self._saliency.share or self._shadow.share)

    def listen(self, samples: NDArray[np.float32]) -> "Future[Sound | None] | None":
        """How a window of samples, [n] at 16 kHz, sounds; None where that is not measured, or measuring failed."""
        return self._executor.submit(self._heard, samples) if self._read else None

    def answered(self, question: QueryOptions, answer: MonitoredAnswer) -> None:
        """Measures and counts an answer, some time soon; to be called in the call that asked."""
        if not self._read or question.monitoring is MonitoringScope.NOTHING:
            return
        call = current_context.get(None)
        request_id = call.id if call else None
        self._executor.submit(self._measured, question, answer, request_id)
        if question.monitoring is MonitoringScope.ANSWER and answer.kept is not None:
            self._look_into(question, answer, answer.kept, request_id)

    async def close(self) -> None:
        """Ends the samples, and what is measured."""
        await self._background.close()
        self._executor.close()

    def _look_into(
        self, question: QueryOptions, answer: MonitoredAnswer, kept: WindowOutput, request_id: str | None
    ) -> None:
        """Draws for one answer."""
        saliency = question.explain is None and self._saliency.sample()
        shadow = len({model.bundle.variant for model in self._models}) > 1 and self._shadow.sample()
        if not (saliency or shadow):
            return
        said = tuple(
            (model.bundle, said.prediction)
            for model, said in zip(answer.models, kept.said, strict=True)
            if isinstance(said, ModelOutput)
        )
        sample = Sample(kept.window.samples, said, kept.sound, request_id)
        if saliency:
            self._background.offer("saliency", self._samples.explain, sample)
        if shadow:
            self._background.offer("shadow", self._samples.compare, sample)

    async def _run_in_thread(self, function: Callable[[], T], /) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor.thread, function)

    def _heard(self, samples: NDArray[np.float32]) -> Sound | None:
        try:
            return hear(samples)
        except Exception:  # whatever it is, the request goes on
            log.exception("the sound of a request could not be measured")
            self._executor.count("failed")
            return None

    def _measured(self, question: QueryOptions, answer: MonitoredAnswer, request_id: str | None) -> None:
        try:
            self._meter.answered(question, answer, request_id)
            self._executor.count("done")
        except Exception:  # whatever it is, the answer has been given
            log.exception("an answer could not be measured")
            self._executor.count("failed")
