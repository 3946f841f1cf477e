"""Train one variant.

  %(prog)s --config training/configs/demo.yaml --variant act-da --corpus DIR --out RUN

Repeat the command to resume an interrupted run. The result is bit-identical to an uninterrupted run (on a CPU, with the
same number of threads and processes).

On several GPUs or machines, each process takes a share of every batch:

  torchrun --nproc-per-node 4 -m speakerlens.training fit …
"""

import argparse
import math
import signal
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from rich.console import Console

from speakerlens.training.checkpoint import (
    CHECKPOINT,
    CONFIG,
    Checkpoint,
    code_revision,
    read_checkpoint,
    write_checkpoint,
)
from speakerlens.training.closing import Measurement, closing, falling
from speakerlens.training.compute import choose_device
from speakerlens.training.config import Config, dump_config, load_config, parse_config
from speakerlens.training.data.batches import Batch, BatchSource, ReadAhead
from speakerlens.training.data.manifest import Corpus, load_corpus
from speakerlens.training.distributed import ALONE, World, joined
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.dev import DevSet, make_dev_set
from speakerlens.training.files import make_folder, write_whole
from speakerlens.training.logs import Report, Value
from speakerlens.training.loop import DivergedError, Figures, Trainer
from speakerlens.training.options import add_device, add_overrides, list_variants
from speakerlens.training.variants import VARIANTS, find_variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command `fit`, or `train`."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    list_variants(parser)
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see training/configs/")
    parser.add_argument("--variant", choices=list(VARIANTS), required=True, help="augmentation; see below")
    parser.add_argument("--corpus", type=Path, required=True, help="corpus folder")
    parser.add_argument("--out", type=Path, required=True, help="run folder: checkpoint, configuration and logs")
    add_device(parser)
    parser.add_argument("--seed", metavar="N", help="short for --set seed=N")
    parser.add_argument("--updates", metavar="N", help="short for --set updates=N")
    parser.add_argument(
        "--minutes", metavar="N", help="short for --set stopping.minutes=N, the most for early stopping"
    )
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    overrides = list(arguments.overrides)
    short = {"seed": arguments.seed, "updates": arguments.updates, "stopping.minutes": arguments.minutes}
    overrides += [f"{key}={value}" for key, value in short.items() if value is not None]
    with joined(choose_device(arguments.device)) as (world, device):
        try:
            config = world.together(lambda: load_config(arguments.config, overrides))
            corpus = world.together(lambda: load_corpus(arguments.corpus))
            return fit(config, arguments.variant, corpus, arguments.out, device, world)
        except UserError:
            if world.leads:
                raise
            return 2  # the first process prints the message


def fit(config: Config, variant: str, corpus: Corpus, out: Path, device: torch.device, world: World = ALONE) -> int:
    """Train a variant in run folder `out`, resuming if it has a checkpoint.

    Of several processes only the first reads and writes the run folder.

    Returns:
        The exit code: 0, or 128 + the number of the signal that interrupted the run.

    Raises:
        UserError: the folder belongs to another run or cannot be written, or the corpus has one speaker.
        DivergedError: a loss is not finite.
    """
    console = Console(quiet=not world.leads)
    torch.backends.cudnn.benchmark = True  # all batches have one shape; without effect on a CPU
    _check_same_work(config, variant, corpus, world)
    if len(corpus.speakers) < 2:
        raise UserError(
            f"{corpus.root}: has one speaker, {corpus.speakers[0]}; a network needs two or more to tell apart"
        )
    trainer, source = world.together(
        lambda: (
            Trainer(config, variant, corpus, device, world),
            BatchSource(corpus, config, find_variant(variant), device, world),
        )
    )
    first = _resume_or_begin(trainer, out, config, variant, corpus, world)
    if first >= trainer.schedule.end:
        console.print(f"{out}: {variant} is already trained, {first} updates", highlight=False, soft_wrap=True)
        return 0
    run = out if world.leads else None
    with Report(run, variant, first, trainer.schedule.end, console) as report, StopRequest(world.size > 1) as stop:
        report.start(_describe(trainer, source, corpus, world), source.rows)
        if source.missing:
            report.say(f"{corpus.root}: has no {', '.join(source.missing)} for training; continuing without")
        dev_set = world.together(lambda: make_dev_set(corpus, config))
        if dev_set is None and config.stopping is not None:
            raise UserError(f"{corpus.root}: has no dev split, which `stopping` needs; add --set stopping=null")
        return _Fit(trainer, source, dev_set, out, world, report, stop).run(first)


@dataclass
class _Fit:
    """A running fit: updates, dev accuracy, checkpoints and reports."""

    trainer: Trainer
    source: BatchSource
    dev_set: DevSet | None
    out: Path
    world: World
    report: Report
    stop: "StopRequest"

    def __post_init__(self) -> None:
        """Start the clock, which goes on from where the run was stopped."""
        self._began = time.monotonic() - self.trainer.schedule.progress.seconds
        self._measured: list[Measurement] = []

    def run(self, first: int) -> int:
        """Run the updates from `first` on; return the exit code."""
        config, world, report = self.trainer.config, self.world, self.report
        data, schedule, saved, done = config.data, self.trainer.schedule, first, first
        with ReadAhead(self.source.batch, first, schedule.end, data.read_ahead, data.readers) as batches:
            while done < schedule.end:
                batch, signal_number = world.agree(batches.next, self.stop.signal)
                if signal_number:
                    if saved != done:
                        self._save(done)
                    report.stop(done, f"stopped after update {done} of {schedule.end}; repeat the command to resume")
                    return 128 + signal_number
                figures = self._update(done, batch, saved)
                done += 1
                self._explain_margin(done)
                decided = self._decide(done)
                report.update(done, figures, self._is_due(done, config.intervals.log))
                if decided or self._is_due(done, config.intervals.checkpoint):
                    self._save(done)
                    saved = done
        report.stop(done, f"finished, {done} updates" + closing(self._measured, schedule.progress, config))
        return 0

    def _is_due(self, done: int, interval: int) -> bool:
        return done % interval == 0 or done == self.trainer.schedule.end

    def _decide(self, done: int) -> bool:
        """Measure dev accuracy where it is due; return whether the learning rate begins to fall now."""
        config, schedule = self.trainer.config, self.trainer.schedule
        if self.dev_set is not None and self._is_due(done, config.intervals.dev):
            measure = partial(self.dev_set.accuracy, self.trainer.result, self.trainer.device)
            accuracy = self.report.dev(done, partial(measure, config.data.batch_size, self.world))
            self._measured.append(Measurement(done, accuracy))
            decided = schedule.observe(done, accuracy, self._seconds())
        else:
            due = config.stopping is not None and self._is_due(done, config.intervals.log)
            decided = schedule.check_bounds(done, self._seconds() if due else schedule.progress.seconds)
        if decided:
            self.report.plan(schedule.end)
            self.report.say(falling(schedule))
        return decided

    def _seconds(self) -> float:
        """Return the training time so far, the same on all processes."""
        return self.world.largest(round(1000 * (time.monotonic() - self._began))) / 1000

    def _explain_margin(self, done: int) -> None:
        head = self.trainer.config.head
        begin, end = (math.ceil(place) for place in self.trainer.schedule.growth)
        if head.kind == "aam" and head.margin > 0 and done == max(1, begin) < end:
            self.report.say(
                f"until update {end} the margin grows from 0 to {head.margin:g}: the task becomes harder and the loss "
                "rises with it; what counts is the accuracy"
            )

    def _update(self, step: int, batch: Batch, saved: int) -> Figures:
        try:
            return self.trainer.update(step, batch)
        except DivergedError as error:
            raise DivergedError(f"{error}. {self.out / CHECKPOINT} still holds update {saved}") from error

    def _save(self, done: int) -> None:
        """Write the checkpoint; all processes wait for it."""
        self.world.together(
            lambda: write_checkpoint(self.out, self.trainer.checkpoint(done)) if self.world.leads else None
        )


def _check_same_work(config: Config, variant: str, corpus: Corpus, world: World) -> None:
    """Raise UserError unless all processes have the same configuration, variant and corpus."""
    works = [work.split("\n", 2) for work in world.gather(f"{variant}\n{corpus.digest}\n{dump_config(config)}")]
    for rank, work in enumerate(works):
        for what, ours, theirs in zip(("variant", "corpus", "configuration"), works[0], work, strict=True):
            if ours != theirs:
                raise UserError(f"process {rank} has another {what} than process 0; all machines must have the same")


def _resume_or_begin(trainer: Trainer, out: Path, config: Config, variant: str, corpus: Corpus, world: World) -> int:
    """Restore the run in a folder, or create the folder; return how many updates are done."""

    def look() -> Checkpoint | None:
        if not world.leads:
            return None
        if (out / CHECKPOINT).exists():
            checkpoint = read_checkpoint(out)
            check_same_run(out, checkpoint, config, variant, corpus)
            return checkpoint
        make_folder(out)
        write_whole(out / CONFIG, dump_config(config))
        write_checkpoint(out, trainer.checkpoint(0))
        return None

    checkpoint: Checkpoint | None = world.share(world.together(look))
    if checkpoint is None:
        return 0
    trainer.restore(checkpoint)
    return checkpoint["step"]


def check_same_run(out: Path, checkpoint: Checkpoint, config: Config, variant: str, corpus: Corpus) -> None:
    """Raise UserError unless a checkpoint is of the same variant, corpus and configuration."""
    theirs = _flat(parse_config(checkpoint["config"], str(out / CHECKPOINT)))
    ours = _flat(config)
    differing = [key for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)]
    if checkpoint["variant"] != variant:
        problem = f"holds a run of variant {checkpoint['variant']}, not {variant}"
    elif checkpoint["corpus_digest"] != corpus.digest:
        problem = f"was trained on another corpus ({checkpoint['corpus']}, or an earlier version of it)"
    elif differing:
        key = differing[0]
        more = f", and {len(differing) - 1} more values differ" if len(differing) > 1 else ""
        problem = f"was trained with {key} {theirs.get(key)}, not {ours.get(key)}{more}"
    else:
        return
    raise UserError(f"{out}: {problem}; choose another --out, or delete this folder")


def _flat(config: Config) -> dict[str, object]:
    """Return every value of a configuration by its dotted key."""
    values: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            values[prefix] = value

    walk("", asdict(config))
    return values


def _describe(trainer: Trainer, source: BatchSource, corpus: Corpus, world: World) -> dict[str, Value]:
    """Return the facts in the log's first line."""
    return {
        "corpus": str(corpus.root),
        "corpus_digest": corpus.digest,
        "speakers": len(corpus.speakers),
        "interference": list(source.kinds),
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "device": str(trainer.device),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "code_revision": code_revision(),
    }


class StopRequest:
    """Record the first SIGINT or SIGTERM for the loop; the second terminates immediately.

    A context manager; `signal` is the number of the recorded signal, 0 before. `ignore_second`: for use below torchrun,
    which forwards the signal that the terminal has sent to its processes already.
    """

    def __init__(self, ignore_second: bool = False) -> None:
        self.signal = 0
        self._ignore_second = ignore_second
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._ignore_second:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
