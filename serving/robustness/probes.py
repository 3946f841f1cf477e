"""Active probes: the newest version of each variant answers its bundle's own questions on a timer.

A bundle's probe set (`measures.probes`) is heard through the very decoder and queues that requests use, so that a
regression shows though nobody asks: a wrong model, broken resampling, an overflow. Every utterance goes through both
graphs that name a speaker, and counts as right only if both are right; clean ones are compared with themselves as well.

Probes are bulk work, one utterance at a time, with pauses: a request waits for one of them at most, and rarely does.
They count in no metric of requests. What a round found is shown when all of it is there, and taken away when the model
is the variant's newest no longer.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from speakerlens.measures.probes import CLEAN, MAX_SECONDS, RESAMPLED, Condition, ProbeSet
from speakerlens.measures.saliency import deletion_index
from speakerlens.serving.bundle import SAMPLE_RATE, ExpectedProbe
from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.graphs import ComparedJob, ExplainedPrediction, Job
from speakerlens.serving.engine.priority import Priority
from speakerlens.serving.engine.session import Arrays
from speakerlens.serving.metrics.robustness import ConditionResult, Probes
from speakerlens.serving.models.registry import Model, Models, Selector
from speakerlens.serving.pipeline.concurrency import retry_when_full
from speakerlens.serving.pipeline.decode import DurationLimit, EncodedAudio, RawAudio, decode
from speakerlens.serving.pipeline.explain import displayed

log = logging.getLogger(__name__)

T = TypeVar("T")
JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT", bound=Arrays)

# After each utterance, the device is left alone for so many times as long as it took; but a round is to be over in
# this share of the time from one to the next.
PAUSES, ROUND_SHARE = 4.0, 0.5
# An utterance is as close to itself as this in every runtime that computes in float32.
SELF_TOLERANCE = 1e-3
# A device that rounds otherwise may lose an utterance on the edge between two speakers; more is a regression.
EDGE_UTTERANCES = 1


@dataclass(frozen=True)
class ProbeResult:
    """What came of one utterance: right, wrong or failed; seconds from the audio to its speaker; deletion index."""

    outcome: str
    seconds: float = math.nan
    deletion_index: float = math.nan


@dataclass
class ProbeRound:
    """What one model did with its probes."""

    model: Model
    heard: dict[Condition, list[ProbeResult]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def count(self, outcome: str) -> int:
        """How many utterances ended so."""
        return sum(each.outcome == outcome for heard in self.heard.values() for each in heard)


class Prober:
    """Lives on the event loop.

    Args:
        models: what is loaded.
        metrics: what the rounds are shown by.
        codec: threads that mix, decode and measure.
        seconds: from the beginning of one round of all models to the next.
    """

    def __init__(self, models: Models, metrics: Probes, codec: Executor, seconds: float) -> None:
        self._models = models
        self._metrics = metrics
        self._codec = codec
        self._seconds = seconds
        self._begun: dict[str, Model] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Round after round, until it is cancelled; a model that is new is asked at once."""
        self._metrics.period.set(self._seconds)
        self._models.subscribe(self._on_change)
        self._on_change()
        due = -math.inf
        while True:
            self._changed.clear()
            everyone = time.monotonic() >= due
            if everyone:
                due = time.monotonic() + self._seconds
            asked = [each for each in self._newest() if everyone or self._begun.get(each.bundle.variant) is not each]
            pace = _Pauses(ROUND_SHARE * self._seconds, sum(_size(model.bundle.probes) for model in asked))
            for model in asked:
                self._begun[model.bundle.variant] = model
                try:
                    await self._round(model, pace)
                except Exception:  # whatever it is, the next round is not to miss
                    log.exception("probing %s failed unexpectedly", model.bundle.name)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._changed.wait()

    async def _round(self, model: Model, pause: "_Pauses") -> None:
        probes, done = model.bundle.probes, ProbeRound(model)
        assert probes is not None
        for condition in probes.conditions:
            heard = done.heard[condition] = []
            for index in range(len(probes.utterances)):
                if model not in self._newest():
                    return
                started = time.monotonic()
                heard.append(await self._ask(done, probes, index, condition))
                await pause.rest(time.monotonic() - started)
        if model in self._newest():
            self._show(done)

    async def _ask(self, done: ProbeRound, probes: ProbeSet, index: int, condition: Condition) -> ProbeResult:
        """What came of an utterance; the model stays loaded meanwhile."""
        bundle = done.model.bundle
        with self._models.lease([Selector(bundle.variant, bundle.version)]):
            try:
                heard = await self._answer(done.model, probes, index, condition)
            except Exception as error:
                done.errors.append(f"{condition}: {error or type(error).__name__}")
                heard = ProbeResult("failed")
        self._metrics.utterances.labels(bundle.variant, heard.outcome).inc()
        return heard

    async def _answer(self, model: Model, probes: ProbeSet, index: int, condition: Condition) -> ProbeResult:
        audio = await self._run_in_thread(partial(_audio, probes, index, condition))
        started = time.monotonic()
        samples = (await self._run_in_thread(partial(decode, audio, DurationLimit(2 * MAX_SECONDS)))).samples
        prediction = await _computed(model.predict, Job(samples))
        seconds = time.monotonic() - started
        explained = await _computed(model.explain, Job(samples))
        label = model.bundle.speakers.index(probes.utterances[index].speaker)
        right = int(prediction.logits.argmax()) == int(explained.logits.argmax()) == label
        if condition.interference == CLEAN:
            itself = await _computed(model.verify, ComparedJob(samples, prediction.embedding))
            right = right and abs(itself.score - 1.0) <= SELF_TOLERANCE
        deleted = await self._run_in_thread(partial(_deletion_index, model, explained, probes, index, condition))
        return ProbeResult("right" if right else "wrong", seconds, deleted)

    async def _run_in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codec, function)

    def _newest(self) -> list[Model]:
        """Of each variant the model that answers, as far as it has probes."""
        return [model for model in self._models.select(()) if model.bundle.probes is not None]

    def _on_change(self) -> None:
        """Takes away what is shown of models that are the newest no longer, or that were to be asked and are gone."""
        newest = {model.bundle.variant: model for model in self._newest()}
        self._begun = {variant: model for variant, model in self._begun.items() if newest.get(variant) is model}
        for variant in self._metrics.shown - self._begun.keys():
            self._metrics.forget(variant)
        for variant in newest.keys() - self._begun.keys():
            self._metrics.begin(variant)
        self._changed.set()

    def _show(self, done: ProbeRound) -> None:
        bundle, seconds = done.model.bundle, time.monotonic() - done.started
        expected = {Condition(each.interference, each.snr_db): each for each in bundle.baseline.probes}
        results = [_probed(condition, heard, expected[condition]) for condition, heard in done.heard.items()]
        self._metrics.show(bundle.variant, results, seconds)
        _tell(done, seconds)


class _Pauses:
    """Pauses between utterances, as long as the time for all of them allows.

    Args:
        seconds: for all.
        asked: how many there are.
    """

    def __init__(self, seconds: float, asked: int) -> None:
        self._until = time.monotonic() + seconds
        self._left = asked

    async def rest(self, took: float) -> None:
        """After an utterance that took so many seconds."""
        share = max(0.0, self._until - time.monotonic()) / max(1, self._left)
        self._left -= 1
        await asyncio.sleep(min(PAUSES * took, share))


async def _computed(queue: Batcher[JobT, ResultT], job: JobT) -> ResultT:
    """The answer of a queue, however long that takes.

    Raises:
        FloatingPointError: it holds NaN or infinity.
    """
    result = (await retry_when_full(lambda: queue.submit(job, None, Priority.BULK))).result
    if not all(np.isfinite(values).all() for values in result.arrays()):
        raise FloatingPointError("the answer holds NaN or infinity")
    return result


def _audio(probes: ProbeSet, index: int, condition: Condition) -> EncodedAudio | RawAudio:
    """A probe as a client would send it."""
    if condition.interference == RESAMPLED:
        return EncodedAudio(probes.encoded(index))
    return RawAudio(probes.mixture(index, condition).astype("<f4").tobytes(), "float32", SAMPLE_RATE, 1)


def _deletion_index(
    model: Model, explained: ExplainedPrediction, probes: ProbeSet, index: int, condition: Condition
) -> float:
    """Of the fused map of the predicted speaker, as the export measured it; NaN where nothing is mixed in."""
    dominated = probes.dominated(index, condition)
    if dominated is None:
        return math.nan
    return deletion_index(displayed(model.bundle, explained, "fused"), dominated)


def _probed(condition: Condition, heard: Sequence[ProbeResult], expected: ExpectedProbe) -> ConditionResult:
    return ConditionResult(
        condition.interference,
        condition.snr,
        accuracy=sum(each.outcome == "right" for each in heard) / len(heard),
        seconds=_mean([each.seconds for each in heard]),
        deletion_index=_mean([each.deletion_index for each in heard]),
        expected_accuracy=expected.accuracy,
        expected_deletion_index=expected.deletion_index,
    )


def _mean(values: Sequence[float]) -> float | None:
    """Of what is defined; None if nothing is."""
    defined = [value for value in values if math.isfinite(value)]
    return sum(defined) / len(defined) if defined else None


def _size(probes: ProbeSet | None) -> int:
    return 0 if probes is None else len(probes.conditions) * len(probes.utterances)


def _tell(done: ProbeRound, seconds: float) -> None:
    """One line for the log: a warning where less is right than at export, and says where."""
    asked, right = sum(map(len, done.heard.values())), done.count("right")
    expected = {Condition(each.interference, each.snr_db): each.accuracy for each in done.model.bundle.baseline.probes}
    fallen = _fallen(done.heard, expected)
    line = f"probes of {done.model.bundle.name}: {right} of {asked} right in {seconds:.1f} s"
    if done.errors:
        line += f", {len(done.errors)} failed, first {done.errors[0]}"
    if fallen:
        line += f"; at export more were right: {', '.join(fallen)}"
    log.log(logging.WARNING if fallen or done.errors else logging.INFO, "%s", line)


def _fallen(heard: Mapping[Condition, Sequence[ProbeResult]], expected: Mapping[Condition, float]) -> list[str]:
    """The conditions in which more than one utterance fewer is right than was expected, in words."""
    found = []
    for condition, each in heard.items():
        right = sum(one.outcome == "right" for one in each)
        wanted = round(expected[condition] * len(each))
        if right < wanted - EDGE_UTTERANCES:
            found.append(f"{condition} {right} of {len(each)}, not {wanted}")
    return found
