"""The server's pipeline without a server: bundles opened, queues and decoders started, on an event loop of its own."""

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.containers import has_ffmpeg
from speakerlens.decoder_pool import shared_pool
from speakerlens.measures.sound import Sound, measure_sound
from speakerlens.serving.bundle import BundleError
from speakerlens.serving.config import Config
from speakerlens.serving.engine.admission import Admission
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.folders import NUMBER, BundleFolder, list_bundles, stamp_of
from speakerlens.serving.models.loader import build_model, open_engine, placement_of
from speakerlens.serving.models.registry import Model, Models
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.observer import MonitoredAnswer

log = logging.getLogger(__name__)

T = TypeVar("T")

MANIFEST = "bundle.json"


class SoundObserver:
    """An observer that measures the sound, which the evidence rests on, and watches nothing."""

    keeps_windows = False

    def measure_sound(self, samples: NDArray[np.float32], /) -> Sound | None:
        """Return the measures of a window, float32 [n] at 16 kHz; None if that failed. Thread-safe."""
        try:
            return measure_sound(samples)
        except Exception:  # the recording is scored, whatever the error
            log.exception("the sound of a recording could not be measured")
            return None

    def record(self, answer: MonitoredAnswer, /) -> None:
        """Take an answer, and do nothing with it."""


class LocalPipeline:
    """The pipeline with the models of some folders, in a thread with an event loop; close it after use.

    Args:
        folders: one for each model, <variant>/<version>.
        config: as for a server; what concerns calls is not used.

    Attributes:
        models: in the order of the folders.
        pipeline: for the event loop only: use `submit`.

    Raises:
        BundleError: a bundle must not be used.
        StartupError: the device does not work.
    """

    def __init__(self, folders: Sequence[BundleFolder], config: Config) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scoring", daemon=True)
        self._thread.start()
        self._codec = ThreadPoolExecutor(config.codec_threads, thread_name_prefix="codec")
        shared_pool().start(av=has_ffmpeg())
        self._scheduler: Scheduler | None = None
        self._loaded: Models | None = None
        self.models: tuple[Model, ...] = ()
        try:
            self.pipeline = self.submit(self._open(folders, config)).result()
        except BaseException:
            self.close()
            raise

    async def _open(self, folders: Sequence[BundleFolder], config: Config) -> Pipeline:
        metrics = Metrics()
        self._scheduler = Scheduler(config.device, placement_of(config).instances)
        self._loaded = Models(metrics)
        for folder in folders:
            opened = await asyncio.to_thread(open_engine, folder, config, None)
            assert opened is not None, "no digest is known"
            model = build_model(*opened, self._scheduler, config, metrics)
            self._loaded.put(model)
            self.models += (model,)
        admission = Admission(config.max_in_flight, config.codec_threads)
        return Pipeline(self._loaded, config, metrics, self._codec, SoundObserver(), admission)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Stop the queues and the threads; what is in work is cancelled. May be called twice."""
        if self._loop.is_closed():
            return
        self.submit(self._stop()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._codec.shutdown(wait=False, cancel_futures=True)

    async def _stop(self) -> None:
        if self._loaded is not None:
            await self._loaded.close()
        if self._scheduler is not None:
            self._scheduler.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_default_executor()


def find_bundles(folder: Path, variants: Sequence[str] = ()) -> list[BundleFolder]:
    """Return the folder of a bundle, or the newest bundle of each variant below it.

    Args:
        folder: with bundle.json, or <variant>/<version> below it.
        variants: which of them, in this order; none: all.

    Raises:
        BundleError: there is no bundle, or a variant is missing.
    """
    if (folder / MANIFEST).exists():
        whole = folder.resolve()
        number = int(whole.name) if NUMBER.fullmatch(whole.name) else 0
        found = {whole.parent.name: BundleFolder(whole, whole.parent.name, number, stamp_of(whole))}
    else:
        try:
            found = {name: versions[0] for name, versions in list_bundles(folder).items()}
        except OSError as error:
            raise BundleError(f"{folder}: {error.strerror}") from error
    if not found:
        raise BundleError(f"{folder}: no bundle there; expected {MANIFEST}, or <variant>/<version>/{MANIFEST}")
    missing = [name for name in variants if name not in found]
    if missing:
        raise BundleError(f"{folder}: no variant {missing[0]}; there are {', '.join(found)}")
    return [found[name] for name in variants or found]
