"""From a bundle on disk to a model that answers: opened and warmed up off the event loop, then given its queues."""

import logging
import time

from serving.audio import MODEL_RATE
from serving.batcher import Batcher, Bounds, Device
from serving.bundles import Bundle, BundleError, Fault, read_bundle
from serving.config import Config
from serving.engine import Engine
from serving.folders import Found, stamp_of
from serving.graph import Utterance
from serving.metrics import Metrics
from serving.models import Model
from serving.statistics import Counting, Statistics

log = logging.getLogger(__name__)


def open_engine(found: Found, config: Config, known: str | None) -> tuple[Bundle, Engine] | None:
    """Reads a bundle, opens its graphs and warms them up; None if it is the one with the digest `known`.

    Takes seconds; runs anywhere but on the event loop.

    Raises:
        BundleError: it is not fit to serve.
        StartupError: the device that was asked for does not work.
    """
    started = time.monotonic()
    bundle = read_bundle(found.folder)
    opened = None
    if bundle.digest != known:
        log.info("loading %s", bundle.name)
        engine = Engine(bundle, config.device, config.threads)
        engine.warm_up()
        opened = bundle, engine
    # What was checked and what was opened are the same only if nobody wrote in between.
    if stamp_of(found.folder) != found.stamp:
        raise BundleError("it changed while it was read", Fault.UNREADABLE)
    if opened:
        seconds = time.monotonic() - started
        log.info("loaded %s on %s in %.1f s, %d speakers", bundle.name, engine.provider, seconds, len(bundle.speakers))
    return opened


def build_model(bundle: Bundle, engine: Engine, device: Device, config: Config, metrics: Metrics) -> Model:
    """Puts queues in front of an open engine. Runs on the event loop, where the queues live."""
    bounds = Bounds(config.queue_size, config.max_batch, int(config.max_batch_seconds * MODEL_RATE))
    statistics = Statistics()
    predict = Counting(statistics, metrics.queue(bundle.variant, "predict"))
    explain = Counting(statistics, metrics.queue(bundle.variant, "explain"))
    verify = Counting(statistics, metrics.queue(bundle.variant, "verify"))
    return Model(
        bundle,
        engine.provider,
        Batcher(
            f"{bundle.name} predict",
            engine.predict.run,
            _samples,
            device,
            bounds,
            predict,
        ),
        Batcher(
            f"{bundle.name} explain",
            engine.explain.run,
            _samples,
            device,
            bounds,
            explain,
        ),
        Batcher(
            f"{bundle.name} verify",
            engine.verify.run,
            _samples,
            device,
            bounds,
            verify,
        ),
        statistics,
    )


def _samples(job: Utterance) -> int:
    return len(job.audio)
