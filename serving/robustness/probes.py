"""Active probes: the newest version of each variant identifies its bundle's sealed probe set on a timer.

Probes pass through the decoder and the queues that requests use, so a regression (a wrong model, broken resampling, an
overflow) shows without traffic. Every utterance runs through both graphs that identify, and is right only if both are;
a clean one is also verified against its own embedding. Where the network has no classifier, an utterance is right if
its nearest enrolled voice is its speaker's, and both graphs find the same cosine to it.

Probes run one at a time at bulk priority, with pauses, so a request waits for at most one of them. They count in no
metric of requests. Results are shown when a round is complete, and removed when its model is no longer the newest.
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

from speakerlens.measures.probes import CLEAN, MAX_SECONDS, RESAMPLED, Condition, ProbeSet
from speakerlens.measures.saliency import deletion_index
from speakerlens.serving.bundle import SAMPLE_RATE, ExpectedProbe
from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.graphs import Arrays, ComparedJob, Comparison, ExplainedPrediction, Job, check_finite
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.metrics.robustness import ConditionResult, Probes
from speakerlens.serving.models.registry import Model, Models, Selector
from speakerlens.serving.pipeline.concurrency import retry_when_full
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio, decode
from speakerlens.serving.pipeline.explain import displayed
from speakerlens.serving.pipeline.samples import DurationLimit

log = logging.getLogger(__name__)

T = TypeVar("T")
JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT", bound=Arrays)

# After each probe, pause for this multiple of its duration; but finish a round within this share of the period.
PAUSES, ROUND_SHARE = 4.0, 0.5
# The cosine of an utterance with itself is 1 within this, in every float32 runtime.
SELF_TOLERANCE = 1e-3
# Other rounding may flip one utterance on the boundary between two speakers; more is a regression.
EDGE_UTTERANCES = 1


@dataclass(frozen=True)
class ProbeResult:
    """The result of one probe.

    Attributes:
        outcome: `right`, `wrong` or `failed`.
        seconds: from audio to prediction; NaN if it failed.
        deletion_index: by the true mask; NaN where it is not defined.
    """

    outcome: str
    seconds: float = math.nan
    deletion_index: float = math.nan


@dataclass
class ProbeRound:
    """The results of one model in one round."""

    model: Model
    results: dict[Condition, list[ProbeResult]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def count(self, outcome: str) -> int:
        """Return the number of probes with this outcome."""
        return sum(each.outcome == outcome for results in self.results.values() for each in results)


class Prober:
    """Runs the rounds of probes. Event-loop only.

    Args:
        models: loaded models.
        metrics: show the results.
        codec: threads that mix, decode and measure.
        seconds: period, from the start of one round to the start of the next.
    """

    def __init__(self, models: Models, metrics: Probes, codec: Executor, seconds: float) -> None:
        self._models = models
        self._metrics = metrics
        self._codec = codec
        self._seconds = seconds
        self._probed: dict[str, Model] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Run rounds until cancelled; a newly loaded model is probed at once."""
        self._metrics.period.set(self._seconds)
        self._models.subscribe(self._on_change)
        self._on_change()
        due = -math.inf
        while True:
            self._changed.clear()
            all_due = time.monotonic() >= due
            if all_due:
                due = time.monotonic() + self._seconds
            newest = self._newest()
            due_models = [each for each in newest if all_due or self._probed.get(each.bundle.variant) is not each]
            probes = sum(_size(model.bundle.probes) for model in due_models)
            pauses = _Pauses(ROUND_SHARE * self._seconds, probes)
            for model in due_models:
                self._probed[model.bundle.variant] = model
                try:
                    await self._round(model, pauses)
                except Exception:  # the next round must run, whatever the error
                    log.exception("probing %s failed unexpectedly", model.bundle.name)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._changed.wait()

    async def _round(self, model: Model, pauses: "_Pauses") -> None:
        probes, done = model.bundle.probes, ProbeRound(model)
        assert probes is not None
        for condition in probes.conditions:
            results = done.results[condition] = []
            for index in range(len(probes.utterances)):
                if model not in self._newest():
                    return
                started = time.monotonic()
                results.append(await self._probe(done, probes, index, condition))
                await pauses.rest(time.monotonic() - started)
        if model in self._newest():
            self._show(done)

    async def _probe(self, done: ProbeRound, probes: ProbeSet, index: int, condition: Condition) -> ProbeResult:
        """Return the result of one probe; leases the model."""
        bundle = done.model.bundle
        with self._models.lease([Selector(bundle.variant, bundle.version)]):
            try:
                result = await self._answer(done.model, probes, index, condition)
            except Exception as error:  # noqa: BLE001 - becomes a failed probe
                done.errors.append(f"{condition}: {error or type(error).__name__}")
                result = ProbeResult("failed")
        self._metrics.utterances.labels(bundle.variant, result.outcome).inc()
        return result

    async def _answer(self, model: Model, probes: ProbeSet, index: int, condition: Condition) -> ProbeResult:
        audio = await self._run_in_thread(partial(_audio, probes, index, condition))
        started = time.monotonic()
        samples = (await self._run_in_thread(partial(decode, audio, DurationLimit(2 * MAX_SECONDS)))).samples
        prediction = await _compute(model.predict, Job(samples))
        seconds = time.monotonic() - started
        explained: ExplainedPrediction | Comparison
        if probes.voices is None:
            explained = await _compute(model.explain, Job(samples))
            label = model.bundle.speakers.index(probes.utterances[index].speaker)
            right = int(prediction.logits.argmax()) == int(explained.logits.argmax()) == label
        else:
            best, cosine = probes.voices.nearest(prediction.embedding)
            explained = await _compute(model.verify, ComparedJob(samples, probes.voices.directions[best]))
            label = probes.voices.speakers.index(probes.utterances[index].speaker)
            right = best == label and abs(explained.score - cosine) <= SELF_TOLERANCE
        if condition.interference == CLEAN:
            itself = await _compute(model.verify, ComparedJob(samples, prediction.embedding))
            right = right and abs(itself.score - 1.0) <= SELF_TOLERANCE
        deleted = await self._run_in_thread(partial(_deletion_index, model, explained, probes, index, condition))
        return ProbeResult("right" if right else "wrong", seconds, deleted)

    async def _run_in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codec, function)

    def _newest(self) -> list[Model]:
        """Return the newest model of each variant, if it has probes."""
        return [model for model in self._models.select(()) if model.bundle.probes is not None]

    def _on_change(self) -> None:
        """Remove the results of models that are no longer the newest, and wake `run` for new ones."""
        newest = {model.bundle.variant: model for model in self._newest()}
        self._probed = {variant: model for variant, model in self._probed.items() if newest.get(variant) is model}
        for variant in self._metrics.shown - self._probed.keys():
            self._metrics.forget(variant)
        for variant in newest.keys() - self._probed.keys():
            self._metrics.begin(variant)
        self._changed.set()

    def _show(self, done: ProbeRound) -> None:
        bundle, seconds = done.model.bundle, time.monotonic() - done.started
        expected = {Condition(each.interference, each.snr_db): each for each in bundle.baseline.probes}
        results = [_summarise(condition, found, expected[condition]) for condition, found in done.results.items()]
        self._metrics.show(bundle.variant, results, seconds)
        _log_round(done, seconds)


class _Pauses:
    """Pauses between probes, shortened so that a round ends in time.

    Args:
        seconds: for the round.
        probes: in the round.
    """

    def __init__(self, seconds: float, probes: int) -> None:
        self._until = time.monotonic() + seconds
        self._left = probes

    async def rest(self, took: float) -> None:
        """Pause after a probe, given the seconds that it took."""
        share = max(0.0, self._until - time.monotonic()) / max(1, self._left)
        self._left -= 1
        await asyncio.sleep(min(PAUSES * took, share))


async def _compute(queue: Batcher[JobT, ResultT], job: JobT) -> ResultT:
    """Return the result of a job at bulk priority, without a deadline.

    Raises:
        FloatingPointError: it holds NaN or infinity.
    """
    result = (await retry_when_full(lambda: queue.submit(job, None, Priority.BULK))).result
    check_finite("the model", result)
    return result


def _audio(probes: ProbeSet, index: int, condition: Condition) -> EncodedAudio | RawAudio:
    """Return a probe as a client would send it."""
    if condition.interference == RESAMPLED:
        return EncodedAudio(probes.encoded(index))
    return RawAudio(probes.mixture(index, condition).astype("<f4").tobytes(), "float32", SAMPLE_RATE, 1)


def _deletion_index(
    model: Model, explained: ExplainedPrediction | Comparison, probes: ProbeSet, index: int, condition: Condition
) -> float:
    """Return the deletion index of the best speaker's fused map by the true mask; NaN without interference."""
    dominated = probes.dominated(index, condition)
    if dominated is None:
        return math.nan
    return deletion_index(displayed(model.bundle, explained, "fused"), dominated)


def _summarise(condition: Condition, results: Sequence[ProbeResult], expected: ExpectedProbe) -> ConditionResult:
    return ConditionResult(
        condition.interference,
        condition.snr,
        accuracy=sum(each.outcome == "right" for each in results) / len(results),
        seconds=_mean([each.seconds for each in results]),
        deletion_index=_mean([each.deletion_index for each in results]),
        expected_accuracy=expected.accuracy,
        expected_deletion_index=expected.deletion_index,
    )


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean of the finite values; None if there are none."""
    defined = [value for value in values if math.isfinite(value)]
    return sum(defined) / len(defined) if defined else None


def _size(probes: ProbeSet | None) -> int:
    return 0 if probes is None else len(probes.conditions) * len(probes.utterances)


def _log_round(done: ProbeRound, seconds: float) -> None:
    """Log one line: a warning if probes failed, or conditions fell below the accuracy at export."""
    probes, right = sum(map(len, done.results.values())), done.count("right")
    expected = {Condition(each.interference, each.snr_db): each.accuracy for each in done.model.bundle.baseline.probes}
    regressed = _regressed(done.results, expected)
    line = f"probes of {done.model.bundle.name}: {right} of {probes} right in {seconds:.1f} s"
    if done.errors:
        line += f", {len(done.errors)} failed, first {done.errors[0]}"
    if regressed:
        line += f"; more were right at export: {', '.join(regressed)}"
    log.log(logging.WARNING if regressed or done.errors else logging.INFO, "%s", line)


def _regressed(results: Mapping[Condition, Sequence[ProbeResult]], expected: Mapping[Condition, float]) -> list[str]:
    """Return a phrase for each condition in which more than one probe fewer is right than at export."""
    found = []
    for condition, each in results.items():
        right = sum(one.outcome == "right" for one in each)
        wanted = round(expected[condition] * len(each))
        if right < wanted - EDGE_UTTERANCES:
            found.append(f"{condition} {right} of {len(each)}, not {wanted}")
    return found
