"""From a bundle on disk to a model that answers: opened and warmed up off the event loop, then given its queues."""

import logging
from collections.abc import Callable, Sequence

from serving.audio import MODEL_RATE
from serving.batcher import Batcher, Bounds, Device
from serving.bundles import Bundle, BundleError, Refusal
from serving.config import Config
from serving.engine import Engine, Job
from serving.errors import StartupError
from serving.metrics import Metrics
from serving.models import Model, Models

log = logging.getLogger(__name__)


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
    models = Models(opened[0][1].provider, metrics)
    for bundle, engine in opened:
        models.put(build_model(bundle, engine, device, config, metrics))
    return models


def build_model(bundle: Bundle, engine: Engine, device: Device, config: Config, metrics: Metrics) -> Model:
    """Puts queues in front of an open engine. Runs on the event loop, where the queues live."""
    bounds = Bounds(config.queue_size, config.max_batch, int(config.max_batch_seconds * MODEL_RATE))
    predict = metrics.queue(bundle.variant, "predict")
    explain = metrics.queue(bundle.variant, "explain")
    return Model(
        bundle,
        Batcher(f"{bundle.name} predict", engine.predict, _samples, device, bounds, predict),
        Batcher(f"{bundle.name} explain", engine.explain, _samples, device, bounds, explain),
    )


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
