"""The loaded models: opened, warmed up, each with its queues, and found by variant and version."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from serving.audio import MODEL_RATE
from serving.batcher import Batcher, Bounds, Device
from serving.bundles import Bundle, BundleError, Refusal
from serving.config import Config
from serving.engine import Engine, ExplainedPrediction, Job, Prediction
from serving.errors import InvalidArgumentError, NotFoundError, Reason, StartupError, listed, quoted
from serving.metrics import Metrics

log = logging.getLogger(__name__)

NEWEST = 0


@dataclass(frozen=True)
class Selector:
    """A model as a request names it; version 0 is the newest."""

    variant: str
    version: int = NEWEST


@dataclass(frozen=True)
class Model:
    """One loaded model and its two queues."""

    bundle: Bundle
    predict: Batcher[Job, Prediction]
    explain: Batcher[Job, ExplainedPrediction]


class Models:
    """Every model that is served, by variant and version."""

    def __init__(self, models: Sequence[Model], provider: str) -> None:
        self.provider = provider
        self._models = {(model.bundle.variant, model.bundle.version): model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    async def close(self) -> None:
        """Stops every queue."""
        for model in self:
            await model.predict.close()
            await model.explain.close()

    def select(self, selectors: Sequence[Selector]) -> tuple[Model, ...]:
        """The models asked for, in that order; no selector asks for every variant's newest, sorted by variant.

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


def open_engines(
    bundles: Sequence[Bundle], config: Config, stopped: Callable[[], bool]
) -> tuple[list[tuple[Bundle, Engine]], list[Refusal]]:
    """Opens and warms up what was found; a bundle whose graphs do not work is refused, the others are served.

    Takes seconds; runs anywhere but on the event loop, and gives up after the current bundle once `stopped()`.

    Raises:
        StartupError: the device that was asked for does not work.
    """
    opened: list[tuple[Bundle, Engine]] = []
    refusals: list[Refusal] = []
    for bundle in bundles:
        if stopped():
            break
        try:
            engine = Engine(bundle, config.device, config.threads)
            engine.warm_up()
        except BundleError as error:
            refusals.append(Refusal(bundle.folder, str(error)))
            continue
        log.info("loaded %s on %s, %d speakers", bundle.name, engine.provider, len(bundle.speakers))
        opened.append((bundle, engine))
    return opened, refusals


def build_models(opened: Sequence[tuple[Bundle, Engine]], device: Device, config: Config, metrics: Metrics) -> Models:
    """Puts queues in front of open engines. Runs on the event loop, where the queues live."""
    bounds = Bounds(config.queue_size, config.max_batch, int(config.max_batch_seconds * MODEL_RATE))
    models = []
    for bundle, engine in opened:
        predict = metrics.queue(bundle.variant, "predict")
        explain = metrics.queue(bundle.variant, "explain")
        models.append(
            Model(
                bundle,
                Batcher(f"{bundle.name} predict", engine.predict, _samples, device, bounds, predict),
                Batcher(f"{bundle.name} explain", engine.explain, _samples, device, bounds, explain),
            )
        )
        metrics.add_model(bundle)
    return Models(models, opened[0][1].provider)


def check_usable(bundles: Sequence[object], refusals: Sequence[Refusal], config: Config) -> None:
    """Says what was refused, and stops where nothing is left.

    Raises:
        StartupError: there is no bundle to serve.
    """
    for refusal in refusals:
        log.error("refused %s: %s", refusal.folder, refusal.reason)
    if bundles:
        return
    if refusals:
        reasons = "; ".join(f"{refusal.folder}: {refusal.reason}" for refusal in refusals[:3])
        raise StartupError(f"--bundles {config.bundles}: no usable bundle, {len(refusals)} refused: {reasons}")
    raise StartupError(f"--bundles {config.bundles}: no bundle there; expected <variant>/<version>/bundle.json")


def _samples(job: Job) -> int:
    return len(job.audio)
