"""The public class that scores recordings in this process."""

import asyncio
import logging
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from speakerlens.measures.windows import WINDOW_SECONDS
from speakerlens.scoring.local import LocalPipeline, find_bundles
from speakerlens.scoring.maps import write_maps
from speakerlens.scoring.rows import Row, failed_row, rows_of
from speakerlens.scoring.sources import Source, groups, named, read
from speakerlens.scoring.writing import arrow_table
from speakerlens.serving.config import Config
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import RequestError, UnavailableError
from speakerlens.serving.models.loader import fit_to_device
from speakerlens.serving.pipeline.concurrency import map_concurrent
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.explain import ExplainOptions, StageName
from speakerlens.serving.pipeline.identify import extent_of
from speakerlens.serving.pipeline.query import Query

log = logging.getLogger(__name__)

# Groups in work at a time, so that the device has work while the next group is read.
GROUPS = 3
# Files are read by this many threads, as each read may wait for a disk that is far away.
READERS = 4
# Recordings in work for each of a batch's rows: some are decoded while others are computed.
PER_ROW = 3


class Scorer:
    """Score recordings with the models of a bundle folder; the numbers are those of a server with the same settings.

    Use it as a context, or close it. One thread at a time may iterate over what it returns.

    Args:
        bundle: folder of one bundle, or of several: then the newest of each variant scores.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: of ONNX Runtime for each model on the CPU; 0: one per core.
        variants: which models of the folder, in this order; none: all.
        embeddings: whether rows have the embedding.
        maps: folder for saliency maps; None computes none.
        stages: which maps: `s1` to `s4`, `fused`.
        window_seconds: length of the windows into which longer audio is cut, as `--window-seconds` of a server.
        max_batch: most utterances of one batch, as `--max-batch` of a server; None: 8, on a GPU by its memory.
        precision: `fp32`, `int8`, `fp16` or `auto`, as `--precision` of a server.

    Raises:
        BundleError: there is no bundle, or one must not be used.
        StartupError: there is no ONNX Runtime, or the device does not work.
        ValueError: an option has a wrong value, or maps are asked of a model without a classifier.
    """

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self,
        bundle: str | PathLike[str],
        device: str = "auto",
        threads: int = 0,
        *,
        variants: Sequence[str] = (),
        embeddings: bool = True,
        maps: str | PathLike[str] | None = None,
        stages: Sequence[str] = ("fused",),
        window_seconds: float = WINDOW_SECONDS,
        max_batch: int | None = None,
        precision: str = "fp32",
    ) -> None:
        options = {
            "device": device,
            "threads": threads,
            "window_seconds": window_seconds,
            "precision": precision,
            "metrics": False,
        }
        rows = {} if max_batch is None else {"max_batch": max_batch}
        config = fit_to_device(Config.model_validate({**options, **rows}))
        self._at_once = PER_ROW * config.max_batch
        self._slots = asyncio.Semaphore(self._at_once)  # shared by the groups: the first has the first places
        config = config.model_copy(update={"max_in_flight": self._at_once, "queue_size": self._at_once})
        chosen = tuple(name for name in get_args(StageName) if name in stages)
        if not stages or len(chosen) != len(stages):
            raise ValueError(f"stages: {', '.join(stages)}; give some of {', '.join(get_args(StageName))}, each once")
        self._explain = None if maps is None else ExplainOptions(stages=chosen)
        self._maps = None if maps is None else Path(maps)
        self._embeddings = embeddings
        self._local = LocalPipeline(find_bundles(Path(bundle), variants), config)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        without = [model.bundle.name for model in self._local.models if not model.bundle.has_classifier]
        if self._explain is not None and without:
            self.close()
            raise ValueError(f"maps: {without[0]} has no classifier, so there is no speaker to explain")

    @property
    def models(self) -> dict[str, str]:
        """Return the digest of each model's bundle by its name, `variant/version`."""
        return {model.bundle.name: model.bundle.digest for model in self._local.models}

    @property
    def provider(self) -> str:
        """Return the execution provider, such as CPUExecutionProvider."""
        return self._local.models[0].provider

    def score(self, sources: Iterable[Source], names: Iterable[str] | None = None) -> Generator[Row, None, None]:
        """Yield the rows of recordings, in their order: one for each model, or one with an error for all.

        Recordings are read a few hundred at a time, and rows come as soon as those are computed, so that memory does
        not grow with their number.

        Args:
            sources: paths, contents of files, samples float or int16 [n] or [n, channels] at 16 kHz, or pairs of
                samples and rate.
            names: of the recordings, for the column `path`; None: paths themselves, and numbers for others.

        Raises:
            ValueError: there are more or fewer names than sources.
            UnavailableError: the device computes nothing any more.
            OSError: a map cannot be written.
        """
        for rows in self.score_each(sources, names):
            yield from rows

    def table(self, sources: Iterable[Source], names: Iterable[str] | None = None) -> Any:
        """Return the rows of recordings as a table of pyarrow; arguments and errors as of `score`."""
        return arrow_table(self.score(sources, names))

    def score_each(
        self, sources: Iterable[Source], names: Iterable[str] | None = None
    ) -> Generator[list[Row], None, None]:
        """Yield the rows of each recording together; arguments and errors as of `score`."""
        working: deque[Future[list[list[Row]]]] = deque()
        try:
            for group in groups(named(sources, names)):
                working.append(self._local.submit(self._score(group)))
                if len(working) == GROUPS:
                    yield from working.popleft().result()
            while working:
                yield from working.popleft().result()
        finally:
            for each in working:
                each.cancel()

    async def _score(self, group: list[tuple[str, Source]]) -> list[list[Row]]:
        """Return the rows of each recording of a group, which is computed by length: batches hold little padding."""
        loop = asyncio.get_running_loop()
        reading = [loop.run_in_executor(self._readers, _read, source) for _, source in group]
        audio = dict(enumerate(await asyncio.gather(*reading)))
        order = sorted(audio, key=lambda index: _seconds(audio[index]))

        async def work(index: int) -> list[Row]:
            return await self._rows(group[index][0], audio.pop(index))

        rows = await map_concurrent(order, work, self._at_once, self._slots)
        by_index = dict(zip(order, rows, strict=True))
        return [by_index[index] for index in range(len(group))]

    async def _rows(self, name: str, audio: EncodedAudio | RawAudio | Exception) -> list[Row]:
        if isinstance(audio, Exception):
            return [failed_row(name, audio)]
        query = Query(audio=audio, explain=self._explain, with_embedding=self._embeddings, priority=Priority.BULK)
        pipeline = self._local.pipeline
        try:
            result = await pipeline.identify(query, self._local.models, counted=False)  # no metrics are read here
        except UnavailableError:
            raise
        except RequestError as error:
            return [failed_row(name, error)]
        except Exception as error:  # one recording does not stop the others
            log.exception("%s failed unexpectedly", name)
            return [failed_row(name, error)]
        files = {}
        if self._maps is not None:
            files = await pipeline.run_in_thread(partial(write_maps, self._maps, name, result))
        return rows_of(name, result, files)

    def close(self) -> None:
        """Stop the threads; what is in work is cancelled."""
        self._local.close()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        """Return the scorer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def _read(source: Source) -> EncodedAudio | RawAudio | Exception:
    try:
        return read(source)
    except (OSError, ValueError) as error:
        return error


def _seconds(audio: EncodedAudio | RawAudio | Exception) -> float:
    if isinstance(audio, Exception):
        return 0.0
    extent = extent_of(audio)
    return extent.frames / max(1, extent.rate)
