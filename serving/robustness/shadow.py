"""What is done with a sampled answer: the maps of those who gave none are measured, and the other variants are asked.

Two variants that name different speakers for the same audio are the first sign, with no truth known, that one of them
is not up to what comes in; at which signal-to-noise ratio they do, says why.
"""

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.sound import Sound
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import ExplainedPrediction, Job, Prediction
from speakerlens.serving.engine.priority import Priority
from speakerlens.serving.metrics import Robustness
from speakerlens.serving.models.registry import Model, Models
from speakerlens.serving.pipeline.session import RunInThread, check_finite
from speakerlens.serving.robustness.measure import AnswerMeter
from speakerlens.serving.robustness.sampling import Dropped, IdleSlot, Sample

# Upper ends of the bands, in dB.
BANDS = ((0.0, "below_0"), (5.0, "0_to_5"), (10.0, "5_to_10"), (20.0, "10_to_20"), (math.inf, "above_20"))


def band_of(snr_db: float) -> str:
    """The label of a signal-to-noise ratio, NaN where it is not known; one on a border is in the band above."""
    return next((name for end, name in BANDS if snr_db < end), "unknown")


class _Named(NamedTuple):
    """Whom a model names as the speaker."""

    bundle: Bundle
    speaker: str


class SampleTasks:
    """What samples are for.

    Args:
        models: what is loaded.
        metrics: hears of agreement.
        gauge: measures maps.
        off_loop: runs a function in a thread.
    """

    def __init__(self, models: Models, metrics: Robustness, meter: AnswerMeter, run_in_thread: RunInThread) -> None:
        self._models = models
        self._metrics = metrics
        self._meter = meter
        self._run_in_thread = run_in_thread

    async def explain(self, sample: Sample, slot: IdleSlot) -> None:
        """Measures the maps of the models that were asked.

        Raises:
            Dropped: one of them is no longer served, or the device is never idle.
            Exception: how a model failed.
        """
        await slot.idle()
        for bundle, _ in sample.said:
            model = next((model for model in self._models if model.bundle.digest == bundle.digest), None)
            if model is None:
                raise Dropped
            with self._models.hold([model]):
                await slot.idle()
                done = await model.explain.submit(Job(sample.audio), slot.deadline, Priority.BULK)
                check_finite(model.bundle.name, done.result)
                await self._measured(model, done.result, sample.request_id)

    async def compare(self, sample: Sample, slot: IdleSlot) -> None:
        """Asks the newest of every variant that was not asked, and compares those that answer with each other.

        Where all of them were asked anyway, that needs no device, and so is not dropped however busy it is.

        Raises:
            Dropped: the device is never idle.
            Exception: how a model failed, the first where several did; the others are compared all the same.
        """
        said = {bundle.digest: prediction for bundle, prediction in sample.said}
        named: list[_Named] = []
        errors: list[Exception] = []
        if any(model.bundle.digest not in said for model in self._models.select([])):
            await slot.idle()
        with self._models.lease([]) as newest:
            for model in newest:
                try:
                    prediction = said.get(model.bundle.digest) or await _predicted(model, sample.audio, slot)
                except Dropped:
                    raise
                except Exception as error:
                    errors.append(error)
                else:
                    named.append(_Named(model.bundle, model.bundle.speakers[int(prediction.logits.argmax())]))
        sound = None if sample.sound is None else await asyncio.wrap_future(sample.sound)
        self._agree(named, sound)
        if errors:
            raise errors[0]

    async def _measured(self, model: Model, prediction: ExplainedPrediction, request_id: str | None) -> None:
        await self._run_in_thread(partial(self._meter.explained, model, prediction, request_id))

    def _agree(self, named: Sequence[_Named], sound: Sound | None) -> None:
        band = band_of(math.nan if sound is None else sound.snr_db)
        for first, second in combinations(sorted(named, key=lambda each: each.bundle.variant), 2):
            # Of somebody whom the other cannot name, it cannot disagree.
            if first.speaker in second.bundle.speakers and second.speaker in first.bundle.speakers:
                agreement = "same" if first.speaker == second.speaker else "different"
                self._metrics.shadow.labels(first.bundle.variant, second.bundle.variant, band, agreement).inc()


async def _predicted(model: Model, audio: NDArray[np.float32], slot: IdleSlot) -> Prediction:
    await slot.idle()
    done = await model.predict.submit(Job(audio), slot.deadline, Priority.BULK)
    check_finite(model.bundle.name, done.result)
    return done.result
