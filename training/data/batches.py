"""Batches: random crops for every update, corrupted on the device, read ahead while the network computes.

Batch `t` is a pure function of the corpus, the configuration, the variant and (seed, t). A run resumed at update t
therefore continues with the same batch, without a stored position in the data.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.training.config import Config, InterferenceKind
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.corruption import corrupt, draw_corruption, usable_kinds
from speakerlens.training.data.crops import CropReader
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.manifest import Clip, Corpus, Split
from speakerlens.training.data.perturbation import draw_alone, draw_channel, draw_speeds, transmit
from speakerlens.training.distributed import ALONE, World
from speakerlens.training.errors import UserError
from speakerlens.training.variants import Variant


class Batch(NamedTuple):
    """The input of one update.

    Attributes:
        audio: float32 [rows, samples], on the device.
        labels: indices into `Corpus.speakers`, int64 [rows].
        originals: the clean originals of the corrupted copies, float32 [copies, samples], where the variant aligns
            them and they are not rows of the batch; else empty.
        names: for messages, each row's crop and corruption.
    """

    audio: Tensor
    labels: Tensor
    originals: Tensor
    names: tuple[str, ...]


class _Row(NamedTuple):
    """The plan of a row: place in [0, 1) within the clip; the seed of the corruption, None for a clean row."""

    label: int
    clip: Clip
    place: float
    speed: float
    corruption: np.random.SeedSequence | None


class BatchSource:
    """Draws the batches of a training run; thread-safe.

    Of several processes that train together, each reads the rows whose index modulo the number of processes is its
    rank, and a crop's copy along with the crop. All shares together are the batch of a single process, and each has
    about the same number of copies.

    Attributes:
        corpus: the source of the clips.
        kinds: the configured kinds of interference that the corpus can supply; empty for a variant without copies.
        missing: the configured kinds that it cannot supply.

    Raises:
        UserError: a speaker has no training utterance; copies are wanted and the corpus can supply none of the
            configured kinds of interference; or the crops cannot be divided equally, or leave a process without a copy.
    """

    def __init__(
        self, corpus: Corpus, config: Config, variant: Variant, device: torch.device, world: World = ALONE
    ) -> None:
        self._drawn = round(config.data.batch_size * variant.crops)
        if self._drawn % world.size:
            raise UserError(
                f"data.batch_size {config.data.batch_size} makes {self._drawn} crops, which cannot be divided equally "
                f"among {world.size} processes; choose another"
            )
        # A process without a copy would skip the collective operations of the alignment.
        if variant.aligned and variant.copies == "share":
            copies = round(config.interference.share * self._drawn)
            if copies < world.size:
                raise UserError(
                    f"interference.share {config.interference.share:g} makes {copies} copies of {self._drawn} crops; "
                    f"this variant aligns at least one in each of its processes ({world.size}): give a larger share"
                )
        self.corpus, self._config, self._variant, self._device = corpus, config, variant, device
        self._world = world
        self._clips = _clips_by_speaker(corpus, "train")
        samples = round(config.data.crop_seconds * SAMPLE_RATE)
        self._crops = CropReader(corpus.utterances("train"), samples, config.data.cache_megabytes)
        self._local = threading.local()
        self._interference = InterferenceSource(corpus, "train", config.interference.talkers)
        self.kinds: tuple[InterferenceKind, ...] = ()
        self.missing: tuple[InterferenceKind, ...] = ()
        if variant.copies != "none":
            self.kinds = usable_kinds(self._interference, config.interference)
            if not self.kinds:
                wanted = ", ".join(config.interference.snr_db)
                raise UserError(f"{corpus.root}: has no training interference of the configured kinds ({wanted})")
            if len(self.kinds) < 2 and config.interference.combine > 0:
                raise UserError(
                    f"{corpus.root}: interference.combine needs two kinds of interference, and of those configured the "
                    f"corpus has only {self.kinds[0]} for training"
                )
            self.missing = tuple(kind for kind in config.interference.snr_db if kind not in self.kinds)

    @property
    def rows(self) -> int:
        """Rows of every batch, over all processes."""
        return round(self._config.data.batch_size * self._variant.rows)

    def batch(self, step: int) -> Batch:
        """Return this process's rows of the batch of update `step`, counted from 0."""
        plan = self._plan(step)
        with self._own_stream():
            return self._realise(plan)

    def _realise(self, plan: list[_Row]) -> Batch:
        """Read the crops of the rows and corrupt the copies."""
        crops = [self._crops.read(row.clip, row.place, row.speed) for row in plan]
        speech = torch.from_numpy(np.stack([samples for samples, _ in crops])).to(self._device)
        names = tuple(
            f"{row.clip.path.name} at {start:.2f} s" + (f", speed {row.speed:g}" if row.speed != 1.0 else "")
            for row, (_, start) in zip(plan, crops, strict=True)
        )
        labels = torch.tensor([row.label for row in plan]).to(self._device)
        copied = [row for row in plan if row.corruption is not None]
        if not copied:
            return Batch(speech, labels, speech[:0], names)
        count = len(copied)  # copies come first
        rngs = [np.random.default_rng(row.corruption) for row in copied]
        corruptions = [draw_corruption(self.kinds, self._config.interference, rng) for rng in rngs]
        speakers = [self.corpus.speakers[row.label] for row in copied]
        mixtures = corrupt(speech[:count], speakers, corruptions, self._interference, rngs).audio
        channels = [draw_channel(self._config.perturbation, rng) for rng in rngs]
        alone = [
            draw_alone(self._config.perturbation, channel, rng) for channel, rng in zip(channels, rngs, strict=True)
        ]
        mixtures = torch.where(torch.tensor(alone, device=self._device)[:, None], speech[:count], mixtures)
        copies = transmit(mixtures, channels)
        copy_names = tuple(
            " + ".join([name, *map(str, () if quiet else layers)]) + (f", through {channel}" if channel else "")
            for name, layers, channel, quiet in zip(names[:count], corruptions, channels, alone, strict=True)
        )
        if self._variant.copies == "pair":
            return Batch(torch.cat([speech, copies]), torch.cat([labels, labels]), speech[:0], names + copy_names)
        originals = speech[: count if self._variant.aligned else 0]
        return Batch(torch.cat([copies, speech[count:]]), labels, originals, copy_names + names[count:])

    def _plan(self, step: int) -> list[_Row]:
        """Draw the plan of the whole batch, which is cheap, and return this process's rows."""
        rng = np.random.default_rng([self._config.seed, step])
        drawn = self._draw_speakers(self._drawn, rng).tolist()
        clips = [self._clips[label][rng.integers(len(self._clips[label]))] for label in drawn]
        places = rng.random(len(drawn)).tolist()
        speeds = draw_speeds(len(drawn), self._config.perturbation, rng)
        shares = {"none": 0.0, "share": self._config.interference.share, "pair": 1.0}
        count = round(shares[self._variant.copies] * len(drawn))
        seeds = [*rng.bit_generator.seed_seq.spawn(count), *[None] * (len(drawn) - count)]  # type: ignore[attr-defined]
        rows = [_Row(*row) for row in zip(drawn, clips, places, speeds, seeds, strict=True)]
        return rows[self._world.rank :: self._world.size]

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Use a CUDA stream of this thread, as work on the network's stream would wait for the network."""
        if self._device.type != "cuda":
            yield
            return
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._local.stream):
            yield
            self._local.stream.synchronize()

    def _draw_speakers(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw labels [count]; the numbers of two speakers' occurrences differ by at most one."""
        rounds = [rng.permutation(len(self._clips)) for _ in range(-(-count // len(self._clips)))]
        return np.concatenate(rounds)[:count].astype(np.int64)


class ReadAhead:
    """Calls `make(step)` for first <= step < last in threads, up to `ahead` steps ahead of `next`.

    A context manager. `next` returns the batches in order, and raises an error of `make` at its step.
    """

    def __init__(self, make: Callable[[int], Batch], first: int, last: int, ahead: int, threads: int) -> None:
        self._make = make
        self._steps = iter(range(first, last))
        self._pending: deque[Future[Batch]] = deque()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        for _ in range(ahead):
            self._submit_next()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def next(self) -> Batch:
        """Wait for the next batch and return it."""
        batch = self._pending.popleft().result()
        self._submit_next()
        return batch

    def _submit_next(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._pending.append(self._threads.submit(self._make, step))


def _clips_by_speaker(corpus: Corpus, split: Split) -> list[list[Clip]]:
    """Group a split's utterances by speaker, in the order of the labels."""
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in corpus.utterances(split):
        groups[clip.speaker or ""].append(clip)
    missing = [speaker for speaker in corpus.speakers if speaker not in groups]
    if missing:
        raise UserError(f"{corpus.root}: no {split} utterance of {', '.join(missing[:5])}; every speaker needs some")
    return [groups[speaker] for speaker in corpus.speakers]
