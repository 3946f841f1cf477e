"""The loaded models, found by variant and version, and leased to requests; what each has done since it was loaded."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.graphs import (
    ComparedJob,
    Comparison,
    ExplainedPrediction,
    Job,
    Prediction,
    lowest_stage,
)
from speakerlens.serving.engine.queue import Observer
from speakerlens.serving.engine.recovery import EngineRecovery
from speakerlens.serving.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    listed,
    quoted,
)
from speakerlens.serving.metrics import Metrics, ModelInfo

log = logging.getLogger(__name__)

NEWEST = 0


@dataclass(frozen=True)
class Selector:
    """A model as named in a request; version 0 is the newest."""

    variant: str
    version: int = NEWEST


@dataclass
class Timing:
    """Number of events and their seconds in total."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more event."""
        self.count += 1
        self.seconds += seconds


@dataclass
class Statistics:
    """Counts of one model.

    Attributes:
        batches: by batch size; of all APIs and background work.
        computed_at: end of the last batch in seconds since the epoch; 0 before the first.
        succeeded: calls that were answered, with their total time.
        failed: calls that failed or were cancelled.
        decode: reading and checking the tensors of the answered calls.
        queue: waiting for the device, of the same calls.
        inference: the batch on the device, of the same calls.
        encode: writing the tensors, of the same calls.
    """

    batches: dict[int, Timing] = field(default_factory=dict)
    computed_at: float = 0.0
    succeeded: Timing = field(default_factory=Timing)
    failed: Timing = field(default_factory=Timing)
    decode: Timing = field(default_factory=Timing)
    queue: Timing = field(default_factory=Timing)
    inference: Timing = field(default_factory=Timing)
    encode: Timing = field(default_factory=Timing)

    @property
    def utterances(self) -> int:
        """Number of computed utterances."""
        return sum(size * span.count for size, span in self.batches.items())

    @property
    def executions(self) -> int:
        """Number of computed batches."""
        return sum(span.count for span in self.batches.values())

    def record_batch(self, size: int, seconds: float) -> None:
        """Record that a batch of `size` jobs took `seconds` on the device."""
        self.batches.setdefault(size, Timing()).add(seconds)
        self.computed_at = time.time()

    def record_answer(self, seconds: float, phases: Mapping[str, float]) -> None:
        """Record an answered call of `seconds` in total; `phases` has the seconds of each phase by name."""
        self.succeeded.add(seconds)
        for name, part in phases.items():
            getattr(self, name).add(part)


@dataclass(frozen=True)
class CountingObserver:
    """A batcher's observer that also counts its batches for the model."""

    statistics: Statistics
    observer: Observer

    def record_waiting(self, change: int) -> None:
        """Record that the queue grew by `change` jobs, or shrank if negative."""
        self.observer.record_waiting(change)

    def record_batch(self, size: int, seconds: float) -> None:
        """Record that a batch of `size` jobs took `seconds` on the device."""
        self.statistics.record_batch(size, seconds)
        self.observer.record_batch(size, seconds)


@dataclass(frozen=True, eq=False)
class Model:
    """One loaded model: its bundle, execution provider, engine recovery, queues and statistics.

    `explainers` and `verifiers` are by the lowest stage that they have maps of. Without a classifier `explainers` is
    empty.
    """

    bundle: Bundle
    provider: str
    recovery: EngineRecovery
    predict: Batcher[Job, Prediction]
    explainers: Mapping[str, Batcher[Job, ExplainedPrediction]]
    verifiers: Mapping[str, Batcher[ComparedJob, Comparison]]
    statistics: Statistics

    @property
    def explain(self) -> Batcher[Job, ExplainedPrediction]:
        """The queue for the fused map of a speaker's score, of a model with a classifier."""
        return self.explaining(("fused",))

    @property
    def verify(self) -> Batcher[ComparedJob, Comparison]:
        """The queue for the fused map of a cosine."""
        return self.verifying(("fused",))

    def explaining(self, stages: Collection[str]) -> Batcher[Job, ExplainedPrediction]:
        """Return the cheapest queue for maps of these stages, or `fused`, of a model with a classifier."""
        assert self.explainers, "a model without a classifier explains no speaker"
        return self.explainers[lowest_stage(self.bundle, stages)]

    def verifying(self, stages: Collection[str]) -> Batcher[ComparedJob, Comparison]:
        """Return the cheapest queue for maps of a cosine at these stages, or `fused`."""
        return self.verifiers[lowest_stage(self.bundle, stages)]

    async def close(self) -> None:
        """Stop the queues; the engine is freed with the last reference to it."""
        await self.recovery.close()
        queues: list[Batcher[Any, Any]] = [self.predict, *self.explainers.values(), *self.verifiers.values()]
        for queue in queues:
            await queue.close()


class Models:
    """All models being served, by variant and version. Event-loop only.

    Requests lease the models they use. A model that is taken out is not found by new requests, and is unloaded when its
    last lease ends.

    Args:
        metrics: show the loaded models.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._models: dict[tuple[str, int], Model] = {}
        self._leases: Counter[Model] = Counter()
        self._unloading: set[asyncio.Task[None]] = set()
        self._listeners: list[Callable[[], object]] = []

    def __iter__(self) -> Iterator[Model]:
        """Iterate by variant and version."""
        return iter([self._models[key] for key in sorted(self._models)])

    @property
    def provider(self) -> str:
        """Execution provider; at least one model must be loaded."""
        return next(iter(self)).provider

    def subscribe(self, listener: Callable[[], object]) -> None:
        """Call `listener` after every change of the loaded models."""
        self._listeners.append(listener)

    def put(self, model: Model) -> None:
        """Start serving a model; replaces one of the same variant and version."""
        key = (model.bundle.variant, model.bundle.version)
        self.take_out(self._models.get(key))
        self._models[key] = model
        self._metrics.add_model(_info(model.bundle))
        self._notify()

    def take_out(self, model: Model | None) -> None:
        """Stop serving a model; it is unloaded when its last lease ends."""
        if model is None:
            return
        del self._models[model.bundle.variant, model.bundle.version]
        self._metrics.remove_model(_info(model.bundle))
        self._notify()
        if model not in self._leases:
            self._unload(model)

    async def close(self) -> None:
        """Stop all queues."""
        await asyncio.gather(*(model.close() for model in {*self, *self._leases}), *self._unloading)

    @contextmanager
    def lease(self, selectors: Sequence[Selector], *, naming: bool = False) -> Iterator[tuple[Model, ...]]:
        """Select models and keep them loaded until the block ends, even if they are replaced meanwhile.

        Args:
            selectors: as for `select`.
            naming: whether the models must name speakers: those without a classifier are left out, and refused where
                they are selected.

        Raises:
            NotFoundError, InvalidArgumentError: as `select`.
            FailedPreconditionError: a selected model, or every model, is without a classifier.
        """
        models = self.select(selectors)
        if naming:
            models = _with_classifiers(models, selected=bool(selectors))
        with self.hold(models):
            yield models

    @contextmanager
    def hold(self, models: Sequence[Model]) -> Iterator[None]:
        """Keep models loaded until the block ends; they must be served or leased now."""
        self._leases.update(models)
        try:
            yield
        finally:
            for model in models:
                self._release(model)

    def select(self, selectors: Sequence[Selector], field: str | None = None) -> tuple[Model, ...]:
        """Return the selected models in order; without selectors, the newest of every variant, sorted by variant.

        They may be unloaded as soon as the event loop runs again: `lease` them to compute with them.

        Raises:
            NotFoundError: a variant or version is not loaded; names those that are.
            InvalidArgumentError: a model is selected twice, or a selector is malformed.
        """
        if not selectors:
            selectors = [Selector(variant) for variant in self._variants()]
        chosen: dict[tuple[str, int], Model] = {}
        for index, selector in enumerate(selectors):
            where = field or f"models[{index}]"
            model = self._find(where, selector)
            key = (model.bundle.variant, model.bundle.version)
            if key in chosen:
                raise InvalidArgumentError(Reason.ARGUMENT, f"{where}: {model.bundle.name} is asked for twice")
            chosen[key] = model
        return tuple(chosen.values())

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()

    def _variants(self) -> list[str]:
        return sorted({variant for variant, _ in self._models})

    def _find(self, field: str, selector: Selector) -> Model:
        if not selector.variant:
            raise InvalidArgumentError(Reason.ARGUMENT, f"{field}.variant: empty; name one, or send no models")
        if selector.version < 0:
            raise InvalidArgumentError(
                Reason.ARGUMENT, f"{field}.version: {selector.version}; give a version, or 0 for the newest"
            )
        versions = sorted(version for variant, version in self._models if variant == selector.variant)
        if not versions:
            raise NotFoundError(
                Reason.UNKNOWN_VARIANT,
                f"{field}.variant: no variant {quoted(selector.variant)}; there are {listed(self._variants())}",
            )
        version = versions[-1] if selector.version == NEWEST else selector.version
        if version not in versions:
            raise NotFoundError(
                Reason.UNKNOWN_VERSION,
                f"{field}.version: no version {version} of {selector.variant}; there are {listed(versions)}",
            )
        return self._models[selector.variant, version]

    def _release(self, model: Model) -> None:
        self._leases[model] -= 1
        if self._leases[model]:
            return
        del self._leases[model]
        if self._models.get((model.bundle.variant, model.bundle.version)) is not model:
            self._unload(model)

    def _unload(self, model: Model) -> None:
        log.info("unloading %s: no longer in use", model.bundle.name)
        task = asyncio.create_task(model.close())
        self._unloading.add(task)
        task.add_done_callback(self._unloaded)

    def _unloaded(self, task: "asyncio.Task[None]") -> None:
        self._unloading.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("unloading failed unexpectedly", exc_info=task.exception())


def without_classifier(field: str, model: Model) -> FailedPreconditionError:
    """Return the error of a request that asks a model for names that it does not have."""
    return FailedPreconditionError(
        Reason.NO_CLASSIFIER,
        f"{field}: {model.bundle.name} has no classifier and names no speakers; enrol your speakers and use Search, or "
        "Verify for two voices",
    )


def _with_classifiers(models: Sequence[Model], *, selected: bool) -> tuple[Model, ...]:
    able = tuple(model for model in models if model.bundle.has_classifier)
    for index, model in enumerate(models):
        if model not in able and (selected or not able):
            raise without_classifier(f"models[{index}]" if selected else "models", model)
    return able


def _info(bundle: Bundle) -> ModelInfo:
    return ModelInfo(
        bundle.variant, str(bundle.version), bundle.code_revision, bundle.training_data_digest, bundle.precision
    )
