"""The loaded models: each with its queues, found by variant and version, and leased to whoever uses them."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.graphs import ComparedJob, Comparison, ExplainedPrediction, Job, Prediction
from speakerlens.serving.engine.recovery import EngineRecovery
from speakerlens.serving.engine.statistics import Statistics
from speakerlens.serving.errors import InvalidArgumentError, NotFoundError, Reason, listed, quoted
from speakerlens.serving.metrics import Metrics, ModelInfo

log = logging.getLogger(__name__)

NEWEST = 0


@dataclass(frozen=True)
class Selector:
    """A model as a request names it; version 0 is the newest."""

    variant: str
    version: int = NEWEST


@dataclass(frozen=True, eq=False)
class Model:
    """One loaded model, what it runs on, whether that works, its queues, and what it has done."""

    bundle: Bundle
    provider: str
    recovery: EngineRecovery
    predict: Batcher[Job, Prediction]
    explain: Batcher[Job, ExplainedPrediction]
    verify: Batcher[ComparedJob, Comparison]
    statistics: Statistics

    @property
    def info(self) -> ModelInfo:
        """The model as the metrics show it."""
        bundle = self.bundle
        return ModelInfo(bundle.variant, str(bundle.version), bundle.code_revision, bundle.training_data_digest)

    async def close(self) -> None:
        """Stops the queues; the engine goes with the last that refers to it."""
        await self.recovery.close()
        await self.predict.close()
        await self.explain.close()
        await self.verify.close()


class Models:
    """Every model that is served, by variant and version; lives on the event loop.

    What is used is leased. A model that is taken out is found by no new request, and unloaded when the last lease of it
    ends, so that whoever works with it finishes undisturbed.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._models: dict[tuple[str, int], Model] = {}
        self._leases: Counter[Model] = Counter()
        self._unloading: set[asyncio.Task[None]] = set()
        self._listeners: list[Callable[[], object]] = []

    def __iter__(self) -> Iterator[Model]:
        """By variant and version."""
        return iter([self._models[key] for key in sorted(self._models)])

    @property
    def provider(self) -> str:
        """What the models run on; one must be loaded."""
        return next(iter(self)).provider

    def subscribe(self, listener: Callable[[], object]) -> None:
        """From now on calls `listener` whenever a model is put in or taken out."""
        self._listeners.append(listener)

    def put(self, model: Model) -> None:
        """Serves a model from now on, in the place of one of the same variant and version."""
        key = (model.bundle.variant, model.bundle.version)
        self.take_out(self._models.get(key))
        self._models[key] = model
        self._metrics.add_model(model.info)
        self._tell()

    def take_out(self, model: Model | None) -> None:
        """Serves a model no longer, and unloads it as soon as nobody uses it."""
        if model is None:
            return
        del self._models[model.bundle.variant, model.bundle.version]
        self._metrics.remove_model(model.info)
        self._tell()
        if model not in self._leases:
            self._unload(model)

    async def close(self) -> None:
        """Stops every queue."""
        await asyncio.gather(*(model.close() for model in {*self, *self._leases}), *self._unloading)

    @contextmanager
    def lease(self, selectors: Sequence[Selector]) -> Iterator[tuple[Model, ...]]:
        """Keeps the models asked for loaded until the block is left, even if they are replaced meanwhile.

        For a stream, the block is the whole stream. Errors as for `select`.
        """
        models = self.select(selectors)
        with self.hold(models):
            yield models

    @contextmanager
    def hold(self, models: Sequence[Model]) -> Iterator[None]:
        """The same for models that are served now, or leased."""
        self._leases.update(models)
        try:
            yield
        finally:
            for model in models:
                self._give_back(model)

    def select(self, selectors: Sequence[Selector]) -> tuple[Model, ...]:
        """The models asked for, in that order; no selector asks for every variant's newest, sorted by variant.

        They may be unloaded at any later turn of the event loop: to compute with them, `lease` them.

        Raises:
            NotFoundError: a variant or version is not loaded; says what is.
            InvalidArgumentError: a model is asked for twice, or a selector is malformed.
        """
        if not selectors:
            selectors = [Selector(variant) for variant in self._variants()]
        chosen: dict[tuple[str, int], Model] = {}
        for index, selector in enumerate(selectors):
            model = self._find(index, selector)
            key = (model.bundle.variant, model.bundle.version)
            if key in chosen:
                raise InvalidArgumentError(Reason.ARGUMENT, f"models[{index}]: {model.bundle.name} is asked for twice")
            chosen[key] = model
        return tuple(chosen.values())

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _variants(self) -> list[str]:
        return sorted({variant for variant, _ in self._models})

    def _find(self, index: int, selector: Selector) -> Model:
        if not selector.variant:
            raise InvalidArgumentError(Reason.ARGUMENT, f"models[{index}].variant: empty; name one, or send no models")
        if selector.version < 0:
            raise InvalidArgumentError(
                Reason.ARGUMENT, f"models[{index}].version: {selector.version}; give a version, or 0 for the newest"
            )
        versions = sorted(version for variant, version in self._models if variant == selector.variant)
        if not versions:
            raise NotFoundError(
                Reason.UNKNOWN_VARIANT,
                f"models[{index}].variant: no variant {quoted(selector.variant)}; there are {listed(self._variants())}",
            )
        version = versions[-1] if selector.version == NEWEST else selector.version
        if version not in versions:
            raise NotFoundError(
                Reason.UNKNOWN_VERSION,
                f"models[{index}].version: no version {version} of {selector.variant}; there are {listed(versions)}",
            )
        return self._models[selector.variant, version]

    def _give_back(self, model: Model) -> None:
        self._leases[model] -= 1
        if self._leases[model]:
            return
        del self._leases[model]
        if self._models.get((model.bundle.variant, model.bundle.version)) is not model:
            self._unload(model)

    def _unload(self, model: Model) -> None:
        log.info("unloaded %s: nothing uses it any more", model.bundle.name)
        task = asyncio.create_task(model.close())
        self._unloading.add(task)
        task.add_done_callback(self._unloaded)

    def _unloaded(self, task: "asyncio.Task[None]") -> None:
        self._unloading.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("unloading failed unexpectedly", exc_info=task.exception())
