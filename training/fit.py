"""Train one variant.

  python -m training fit --config training/configs/demo.yaml --variant act-da --corpus DIR --out RUN

Running the same command again goes on where an interrupted run stopped, to the same weights bit for bit
(on a CPU, with the same number of threads), and says so if there is nothing left to do.
"""

import argparse
import signal
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from rich.console import Console

from training import typed_yaml
from training.batches import BatchSource, ReadAhead
from training.checkpoint import CHECKPOINT, CONFIG, Checkpoint, code_revision, read_checkpoint, write_checkpoint
from training.config import Config, dump_config, load_config, parse_config
from training.dev import make_dev_set
from training.errors import UserError
from training.folders import make_folder
from training.logs import Report, Value
from training.loop import DivergedError, Trainer
from training.manifest import Corpus, load_corpus
from training.objectives import VARIANTS, find_variant


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `fit` to the command line."""
    parser = subparsers.add_parser(
        "fit",
        help="train one variant",
        description=__doc__,
        epilog="variants:\n" + "\n".join(f"  {name:8} {variant.about}" for name, variant in VARIANTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see training/configs/")
    parser.add_argument("--variant", choices=list(VARIANTS), required=True, help="how to augment; see below")
    parser.add_argument("--corpus", type=Path, required=True, help="folder that `prepare` made")
    parser.add_argument("--out", type=Path, required=True, help="run folder: checkpoint, configuration and logs")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda if there is one")
    parser.add_argument("--seed", metavar="N", help="the same as --set seed=N")
    parser.add_argument("--updates", metavar="N", help="the same as --set updates=N")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="lay a value over the file's, such as --set optimiser.learning_rate=0.01; may be given several times",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    overrides = list(arguments.overrides)
    overrides += [f"{key}={value}" for key in ("seed", "updates") if (value := getattr(arguments, key)) is not None]
    config = load_config(arguments.config, overrides)
    device = choose_device(arguments.device)
    return fit(config, arguments.variant, load_corpus(arguments.corpus), arguments.out, device)


def choose_device(name: str) -> torch.device:
    """Resolve auto, cpu or cuda. Raises UserError if there is no CUDA device where one is asked for."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # what is not in bfloat16, the front end above all, needs all of float32
    return torch.device("cuda")


def fit(config: Config, variant: str, corpus: Corpus, out: Path, device: torch.device) -> int:
    """Train a variant in run folder `out`, going on with what is there; returns 0, or 128 + signal if interrupted.

    Raises UserError if the folder belongs to another run, and DivergedError at the first loss that is not finite.
    """
    console = Console()
    torch.backends.cudnn.benchmark = True  # all batches have one shape; without effect on a CPU
    trainer = Trainer(config, variant, corpus, device)
    source = BatchSource(corpus, config, find_variant(variant), device)
    first = _resume_or_begin(trainer, out, config, variant, corpus)
    if first >= config.updates:
        console.print(f"{out}: {variant} is trained already, {first} updates", highlight=False, soft_wrap=True)
        return 0
    with Report(out, variant, first, config.updates, console) as report, StopRequest() as stop:
        report.start(_describe(trainer, source, corpus), source.rows)
        if source.missing:
            report.say(f"{corpus.root}: has no {', '.join(source.missing)} to train with; goes on without")
        dev_set = make_dev_set(corpus, config)
        data, intervals = config.data, config.intervals
        saved = first
        with ReadAhead(source.batch, first, config.updates, data.read_ahead, data.readers) as batches:
            for step, batch in batches:
                try:
                    figures = trainer.update(step, batch)
                except DivergedError as error:
                    raise DivergedError(f"{error}. {out / CHECKPOINT} still holds update {saved}") from error
                done = step + 1
                last = done == config.updates
                report.update(done, figures, to_log=done % intervals.log == 0 or last)
                if dev_set is not None and (done % intervals.dev == 0 or last):
                    report.dev(done, partial(dev_set.accuracy, trainer.network, device, data.batch_size))
                if done % intervals.checkpoint == 0 or last or stop.signal:
                    write_checkpoint(out, trainer.checkpoint(done))
                    saved = done
                if stop.signal and not last:
                    report.stop(done, f"stopped after update {done} of {config.updates}; the same command goes on")
                    return 128 + stop.signal
        report.stop(config.updates, f"finished, {config.updates} updates")
    return 0


def _resume_or_begin(trainer: Trainer, out: Path, config: Config, variant: str, corpus: Corpus) -> int:
    """Restore what a run folder holds, or lay a new one out; returns how many updates are done."""
    if (out / CHECKPOINT).exists():
        checkpoint = read_checkpoint(out)
        check_same_run(out, checkpoint, config, variant, corpus)
        trainer.restore(checkpoint)
        return checkpoint["step"]
    make_folder(out)
    (out / CONFIG).write_text(dump_config(config), encoding="utf-8")
    write_checkpoint(out, trainer.checkpoint(0))
    return 0


def check_same_run(out: Path, checkpoint: Checkpoint, config: Config, variant: str, corpus: Corpus) -> None:
    """Raise UserError unless a checkpoint is of the same variant, corpus and configuration."""
    theirs = _flat(parse_config(checkpoint["config"], str(out / CHECKPOINT)))
    ours = _flat(config)
    differing = [key for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)]
    if checkpoint["variant"] != variant:
        problem = f"holds a run of variant {checkpoint['variant']}, not {variant}"
    elif checkpoint["corpus_digest"] != corpus.digest:
        problem = f"was trained on another corpus ({checkpoint['corpus']}, or it was prepared anew since)"
    elif differing:
        key = differing[0]
        more = f", and {len(differing) - 1} more values differ" if len(differing) > 1 else ""
        problem = f"was trained with {key} {theirs.get(key)}, not {ours.get(key)}{more}"
    else:
        return
    raise UserError(f"{out}: {problem}; choose another --out, or delete this folder")


def _flat(config: Config) -> dict[str, object]:
    """List every value of a configuration under its dotted key."""
    values: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            values[prefix] = value

    walk("", typed_yaml.plain(config))
    return values


def _describe(trainer: Trainer, source: BatchSource, corpus: Corpus) -> dict[str, Value]:
    """Collect what the log's first line says of a run, beside its configuration."""
    return {
        "corpus": str(corpus.root),
        "corpus_digest": corpus.digest,
        "speakers": len(corpus.speakers),
        "interference": list(source.kinds),
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "code_revision": code_revision(),
    }


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a wish that the loop looks at; a second one acts at once, as ever.

    A context manager; `signal` is the number of the signal that came, 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0
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
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
