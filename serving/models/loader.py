"""Load a model: open and warm up a bundle's graphs off the event loop, then give them their queues."""

import logging
import time
from dataclasses import replace
from functools import partial

from speakerlens.measures.precision import FP16, FP32, INT8
from speakerlens.serving.bundle import Bundle, BundleError, Fault
from speakerlens.serving.config import Config
from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.buckets import BatchLimits, gpu_rows
from speakerlens.serving.engine.graphs import JobT, ResultT
from speakerlens.serving.engine.placement import (
    Placement,
    find_devices,
    find_gpus,
    gpu_memory,
    instances_of,
)
from speakerlens.serving.engine.queue import Observer, QueueLimits
from speakerlens.serving.engine.recovery import EngineRecovery
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.engine.session import Engine, GraphSession
from speakerlens.serving.engine.tensorrt import find_tensorrt
from speakerlens.serving.errors import StartupError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.folders import BundleFolder, stamp_of
from speakerlens.serving.models.reader import read_bundle
from speakerlens.serving.models.registry import CountingObserver, Model, Statistics

log = logging.getLogger(__name__)

AUTO = "auto"
# Less than this share of float32's processor time counts as faster: the rest is within what the measurement varies.
FASTER = 0.95


def open_engine(found: BundleFolder, config: Config, known: str | None) -> tuple[Bundle, Engine] | None:
    """Read a bundle, open its graphs and warm them up. Takes seconds, so not for the event loop.

    Returns:
        None if the bundle's digest is `known`, as it is loaded already.

    Raises:
        BundleError: the bundle must not be served.
        StartupError: the configured device does not work.
    """
    if found.error:
        raise BundleError(found.error, Fault.UNREADABLE)
    started = time.monotonic()
    bundle = read_bundle(found.folder)
    opened = None
    if bundle.digest != known:
        log.info("loading %s", bundle.name)
        bundle = replace(bundle, precision=choose_precision(bundle, config.precision, bool(find_gpus(config.device))))
        engine = Engine(bundle, placement_of(config), limits_of(config))
        engine.warm_up()
        opened = bundle, engine
    # The files that were checked and those that were opened are the same only if none changed in between.
    if stamp_of(found.folder) != found.stamp:
        raise BundleError("it changed while it was read", Fault.UNREADABLE)
    if opened:
        seconds = time.monotonic() - started
        knows = f"{len(bundle.speakers)} speakers" if bundle.has_classifier else "no classifier"
        log.info("loaded %s on %s in %s in %.1f s, %s", bundle.name, engine.provider, bundle.precision, seconds, knows)
    return opened


def choose_precision(bundle: Bundle, wanted: str, on_gpu: bool) -> str:
    """Return the precision to serve a bundle in.

    Args:
        bundle: read and checked.
        wanted: `fp32`, `int8`, `fp16`, or `auto`: the fastest whose figures meet the floor and that the device supports
            well. That is fp16 on a GPU; on a CPU int8, if the export measured that it is faster; otherwise fp32.
        on_gpu: whether graphs run with CUDA.

    Raises:
        BundleError: the bundle does not have it, its figures miss the floor, or the device does not compute it.
    """
    if wanted == AUTO:
        found = bundle.precisions.get(FP16 if on_gpu else INT8)
        allowed = found is not None and not found.misses and (on_gpu or found.predict_time < FASTER)
        return (FP16 if on_gpu else INT8) if allowed else FP32
    if wanted == FP32:
        return wanted
    if wanted not in bundle.precisions:
        there = ", ".join((FP32, *bundle.precisions))
        raise BundleError(
            f"{bundle.name} has no {wanted}, only {there}: export it with --precision {wanted}, or serve --precision "
            "auto",
            Fault.PRECISION,
        )
    if wanted == INT8 and on_gpu:
        raise BundleError(f"{bundle.name}: int8 is for CPUs; serve --precision fp16 or fp32 with CUDA", Fault.PRECISION)
    missed = bundle.precisions[wanted].misses
    if missed:
        more = f" ({len(missed) - 1} more figures miss it)" if len(missed) > 1 else ""
        raise BundleError(
            f"{bundle.name} in {wanted} misses the floor for serving: {missed[0]}{more}; serve --precision fp32",
            Fault.PRECISION,
        )
    return wanted


def build_model(bundle: Bundle, engine: Engine, scheduler: Scheduler, config: Config, metrics: Metrics) -> Model:
    """Return a model: an open engine with its queues. For the event loop only, as the queues are."""
    reopen = partial(_reopen, bundle, engine)
    recovery = EngineRecovery(bundle.name, reopen, partial(metrics.count_rebuild, bundle.variant))
    statistics = Statistics()
    queue_of = partial(metrics.queue, bundle.variant, capacity=config.queue_size)
    predict = CountingObserver(statistics, queue_of("predict"))
    explain = CountingObserver(statistics, queue_of("explain"))
    verify = CountingObserver(statistics, queue_of("verify"))
    return Model(
        bundle,
        engine.provider,
        recovery,
        _queue(f"{bundle.name} predict", engine.predict, scheduler, config, predict, recovery),
        {
            lowest: _queue(f"{bundle.name} explain", graph, scheduler, config, explain, recovery)
            for lowest, graph in engine.explainers.items()
        },
        {
            lowest: _queue(f"{bundle.name} verify", graph, scheduler, config, verify, recovery)
            for lowest, graph in engine.verifiers.items()
        },
        statistics,
    )


def _reopen(bundle: Bundle, engine: Engine) -> None:
    """Check the files again and reopen the graphs; takes seconds, in any thread.

    Raises:
        BundleError: the graphs do not work, or the folder holds another bundle by now.
    """
    if read_bundle(bundle.folder).digest != bundle.digest:
        raise BundleError("the folder holds another bundle by now")
    engine.reopen()


def _queue(
    name: str,
    graph: GraphSession[JobT, ResultT],
    scheduler: Scheduler,
    config: Config,
    observer: Observer,
    recovery: EngineRecovery,
) -> Batcher[JobT, ResultT]:
    limits = QueueLimits(
        max_waiting=config.queue_size,
        max_batch=config.max_batch,
        max_batch_cost=graph.buckets.batch_samples,
        max_padding=graph.buckets.padding,
        rows=graph.buckets.rows,
    )
    return Batcher(name, graph, scheduler, limits, observer, recovery)


def placement_of(config: Config) -> Placement:
    """Return where graphs run.

    Raises:
        StartupError: CUDA was asked for and does not work here.
    """
    instances = instances_of(config.instances, config.threads, len(find_gpus(config.device)))
    return Placement(
        config.device, config.threads, instances, config.max_device_bytes, config.cuda_graphs, config.tensorrt
    )


def fit_to_device(config: Config) -> Config:
    """Return a configuration whose limits suit the GPU, if there is one, but for those that the operator set.

    Raises:
        StartupError: a GPU, or TensorRT, was asked for and does not work here.
    """
    gpus = find_gpus(config.device)
    if not gpus:
        if config.cuda_graphs or config.tensorrt is not None:
            flag = "--tensorrt" if config.tensorrt is not None else "--cuda-graphs"
            unused = find_devices(config.device)[0].unused
            raise StartupError(f"{flag} needs a GPU, and models run on the CPU{f': {unused}' if unused else ''}")
        return config
    if config.tensorrt is not None:
        find_tensorrt()
    rows = config.max_batch if "max_batch" in config.model_fields_set else gpu_rows(gpu_memory(gpus))
    fitting = {
        "max_batch": rows,
        # All batch calls together fill half of a queue, which should be two batches.
        "queue_size": max(config.queue_size, 4 * rows),
        "max_in_flight": max(config.max_in_flight, 2 * rows * len(gpus)),
    }
    return config.model_copy(
        update={name: value for name, value in fitting.items() if name not in config.model_fields_set}
    )


def limits_of(config: Config) -> BatchLimits:
    """Return the configured limits of batches."""
    return BatchLimits(config.max_batch, config.max_batch_seconds, min(config.max_seconds, config.window_seconds))
