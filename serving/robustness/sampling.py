"""Background re-inference of a sampled share of requests, only while the device is idle.

Two kinds: `saliency` explains a window whose caller asked for no maps, and `shadow` sends it to the variants that were
not asked and compares all of them. Variants that name different speakers for the same audio are the first sign, without
ground truth, that one of them does not cope with the traffic.

One sample at a time, at bulk priority. A sample that waits too long, or comes while too many wait, is dropped and
counted. Waiting samples hold their audio but no lease on a model.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.sound import Sound
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import ExplainedPrediction, Job, Prediction, check_finite
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.errors import DeadlineError, RequestError, ResourceExhaustedError, UnavailableError
from speakerlens.serving.metrics import Robustness
from speakerlens.serving.models.registry import Model, Models
from speakerlens.serving.pipeline.concurrency import FULL

log = logging.getLogger(__name__)

MOST_WAITING = 16
# An older sample says nothing about the present; and a device that is not idle for so long is overloaded.
MAX_WAIT_SECONDS = 10.0
POLL_SECONDS = 0.005

# Upper ends of the SNR bands in dB, and their labels.
BANDS = ((0.0, "below_0"), (5.0, "0_to_5"), (10.0, "5_to_10"), (20.0, "10_to_20"), (math.inf, "above_20"))

Work = Literal["saliency", "shadow"]


@dataclass(frozen=True)
class Sample:
    """One window of an answered request.

    Attributes:
        audio: with speech in it, float32 [n] at 16 kHz.
        predictions: of the bundles that were asked, for this window.
        sound: its sound measures; None if they are not measured.
        request_id: of the call.
    """

    audio: NDArray[np.float32]
    predictions: tuple[tuple[Bundle, Prediction], ...]
    sound: Sound | None
    request_id: str | None


class Dropped(Exception):  # noqa: N818
    """The sample's time ran out, or its model is no longer loaded."""


class IdleSlot:
    """Access to the device while it is idle, until the sample's time runs out.

    Attributes:
        deadline: end of that time, on the clock of `time.monotonic`.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.deadline = time.monotonic() + MAX_WAIT_SECONDS

    async def idle(self) -> None:
        """Wait until nothing runs or waits on the device.

        Raises:
            Dropped: the deadline passed first.
        """
        while not self._scheduler.idle:
            if time.monotonic() >= self.deadline:
                raise Dropped
            await asyncio.sleep(POLL_SECONDS)


SampleWork = Callable[[Sample, IdleSlot], Awaitable[None]]
MeasureMap = Callable[[Model, ExplainedPrediction, str | None], Awaitable[None]]


class Background:
    """The queue of samples and its one worker. Event-loop only.

    Args:
        scheduler: of the device that must be idle.
        metrics: counts the outcome of each sample.
    """

    def __init__(self, scheduler: Scheduler, metrics: Robustness) -> None:
        self._scheduler = scheduler
        self._metrics = metrics
        self._waiting: deque[tuple[Work, SampleWork, Sample, IdleSlot]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def offer(self, work: Work, function: SampleWork, sample: Sample) -> None:
        """Queue a sample, or drop it."""
        if len(self._waiting) >= MOST_WAITING:
            self._count(work, "dropped")
            return
        self._waiting.append((work, function, sample, IdleSlot(self._scheduler)))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Drop all samples, also the one in work."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})
        for work, *_ in self._waiting:
            self._count(work, "dropped")
        self._waiting.clear()

    async def _run(self) -> None:
        """Work until nothing waits."""
        while self._waiting:
            work, function, sample, slot = self._waiting[0]
            outcome = "dropped"
            try:
                await function(sample, slot)
                outcome = "done"
            except (Dropped, DeadlineError, UnavailableError):
                pass
            except Exception as error:
                if not (isinstance(error, ResourceExhaustedError) and error.reason in FULL):
                    outcome = "failed"
                    trace = None if isinstance(error, RequestError) else error
                    log.warning("a %s sample failed: %s", work, error, exc_info=trace)
            finally:
                # Only now: the sample in work counts towards MOST_WAITING.
                self._waiting.popleft()
                self._count(work, outcome)

    def _count(self, work: Work, outcome: str) -> None:
        self._metrics.background.labels(work, outcome).inc()


class SampleTasks:
    """The two kinds of work on samples.

    Args:
        models: loaded models.
        metrics: counts agreement between variants.
        measure_map: measures and counts a map in a thread.
    """

    def __init__(self, models: Models, metrics: Robustness, measure_map: MeasureMap) -> None:
        self._models = models
        self._metrics = metrics
        self._measure_map = measure_map

    async def explain(self, sample: Sample, slot: IdleSlot) -> None:
        """Compute and measure the maps of the models that were asked.

        Raises:
            Dropped: one of them is no longer loaded, or the device was never idle.
            Exception: how a model failed.
        """
        await slot.idle()
        for bundle, _ in sample.predictions:
            if not bundle.has_classifier:
                continue
            model = next((model for model in self._models if model.bundle.digest == bundle.digest), None)
            if model is None:
                raise Dropped
            with self._models.hold([model]):
                await slot.idle()
                done = await model.explain.submit(Job(sample.audio), slot.deadline, Priority.BULK)
                check_finite(model.bundle.name, done.result)
                await self._measure_map(model, done.result, sample.request_id)

    async def compare(self, sample: Sample, slot: IdleSlot) -> None:
        """Compare the newest version of every variant in pairs; asks those that have not been asked.

        If all of them were asked anyway, the device is not needed, and the sample is not dropped when it is busy.

        Raises:
            Dropped: the device was never idle.
            Exception: how the first model failed; the others are compared all the same.
        """
        known = {bundle.digest: prediction for bundle, prediction in sample.predictions}
        named: list[tuple[Bundle, str]] = []
        errors: list[Exception] = []
        naming = [model for model in self._models.select([]) if model.bundle.has_classifier]
        if any(model.bundle.digest not in known for model in naming):
            await slot.idle()
        with self._models.lease([], naming=True) as newest:
            for model in newest:
                try:
                    prediction = known.get(model.bundle.digest) or await _predict(model, sample.audio, slot)
                except Dropped:
                    raise
                except Exception as error:  # noqa: BLE001 - the others are compared all the same
                    errors.append(error)
                else:
                    named.append((model.bundle, model.bundle.speakers[int(prediction.logits.argmax())]))
        self._count_agreement(named, math.nan if sample.sound is None else sample.sound.snr_db)
        if errors:
            raise errors[0]

    def _count_agreement(self, named: Sequence[tuple[Bundle, str]], snr_db: float) -> None:
        pairs = combinations(sorted(named, key=lambda each: each[0].variant), 2)
        for (first, first_speaker), (second, second_speaker) in pairs:
            # A variant that does not know the other's speaker cannot disagree.
            if first_speaker in second.speakers and second_speaker in first.speakers:
                agreement = "same" if first_speaker == second_speaker else "different"
                self._metrics.shadow.labels(first.variant, second.variant, band_of(snr_db), agreement).inc()


def band_of(snr_db: float) -> str:
    """Return the label of an SNR, `unknown` for NaN; a value on a border belongs to the band above."""
    return next((name for end, name in BANDS if snr_db < end), "unknown")


async def _predict(model: Model, audio: NDArray[np.float32], slot: IdleSlot) -> Prediction:
    await slot.idle()
    done = await model.predict.submit(Job(audio), slot.deadline, Priority.BULK)
    check_finite(model.bundle.name, done.result)
    return done.result
