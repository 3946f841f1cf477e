"""Measure the speed of training: the loader alone, the step alone, and both together as `fit` runs them.

  python benchmarks/training.py training/configs/demo.yaml --corpus build/demo/corpus

Prints utterances (rows of a batch) per second for each variant, the median over interleaved repeats, and the ratio of
both together to the slower of the two: 1 if they overlap completely; the goal is at least 0.9. Where loader and step
share the cores of a CPU they cannot overlap, and the ratio says little. Then the loader's cost of an utterance, in
milliseconds of one core: reading crops, drawing interference, and the rest, mostly mixing; work on a GPU counts with
the time to launch it. Not yet run on a GPU.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # or `training` would be this file

from speakerlens.training.checkpoint import code_revision
from speakerlens.training.compute import choose_device
from speakerlens.training.config import Config, load_config
from speakerlens.training.data.batches import BatchSource, ReadAhead
from speakerlens.training.data.crops import CropReader
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.manifest import Corpus, load_corpus
from speakerlens.training.errors import UserError
from speakerlens.training.files import write_whole
from speakerlens.training.loop import Trainer
from speakerlens.training.options import add_device, add_overrides
from speakerlens.training.provenance import machine as machine_of
from speakerlens.training.variants import VARIANTS, find_variant

WARM_UP = 3


@dataclass(frozen=True)
class Speed:
    """Utterances per second of a variant, medians; `ratio` is `together` over the slower of the other two.

    `reading`, `drawing` and `mixing` are the loader's milliseconds of one core per utterance.
    """

    variant: str
    rows: int
    loader: float
    step: float
    together: float
    ratio: float
    reading: float
    drawing: float
    mixing: float


class Bench:
    """The loader and the network of one variant."""

    def __init__(self, config: Config, variant: str, corpus: Corpus, device: torch.device, updates: int) -> None:
        self._config, self._device, self._updates = config, device, updates
        self._source = BatchSource(corpus, config, find_variant(variant), device)
        self._trainer = Trainer(config, variant, corpus, device)
        self._ready = [self._source.batch(step) for step in range(WARM_UP)]
        self.rows = self._source.rows
        self._drawn = 0  # batches so far; none is drawn twice, so that caches help no more than in a run

    def loader(self) -> float:
        """Return the rate of drawing batches as `fit` does."""
        return self._timed(self._ahead, lambda step, batches: batches.next())

    def step(self) -> float:
        """Return the rate of updates on the same few batches."""
        return self._timed(self._ahead_of_nothing, lambda step, _: self._update(step, self._ready[step % WARM_UP]))

    def together(self) -> float:
        """Return the rate of both, as in `fit`."""
        return self._timed(self._ahead, lambda step, batches: self._update(step, batches.next()))

    def parts(self) -> dict[str, float]:
        """Return the loader's milliseconds per utterance on one thread, by part."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        spent = {"reading": 0.0, "drawing": 0.0}
        with _timing(CropReader, "read", spent, "reading"), _timing(InterferenceSource, "draw", spent, "drawing"):
            began = time.thread_time()
            for _ in range(self._updates):
                self._source.batch(self._next())
            whole = time.thread_time() - began
        torch.set_num_threads(threads)
        spent["mixing"] = whole - sum(spent.values())
        return {name: 1e3 * seconds / self._updates / self.rows for name, seconds in spent.items()}

    def _timed(self, ahead: Callable[[int], Any], work: Callable[[int, Any], Any]) -> float:
        """Return utterances per second after the warm-up."""
        with ahead(WARM_UP + self._updates) as batches:
            for step in range(WARM_UP):
                work(step, batches)
            self._wait()
            began = time.perf_counter()
            for step in range(self._updates):
                work(step, batches)
            self._wait()
            return self._updates * self.rows / (time.perf_counter() - began)

    def _ahead(self, count: int) -> ReadAhead:
        first, self._drawn = self._drawn, self._drawn + count
        data = self._config.data
        return ReadAhead(self._source.batch, first, first + count, data.read_ahead, data.readers)

    @contextmanager
    def _ahead_of_nothing(self, count: int) -> Iterator[None]:
        yield

    def _update(self, step: int, batch: Any) -> None:
        self._trainer.update(min(step, self._config.updates - 1), batch)

    def _next(self) -> int:
        self._drawn += 1
        return self._drawn

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@contextmanager
def _timing(owner: type, name: str, spent: dict[str, float], part: str) -> Iterator[None]:
    """Add the time spent in a method to `spent[part]`, within the context."""
    original = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.thread_time()
        try:
            return original(*arguments, **named)
        finally:
            spent[part] += time.thread_time() - began

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, original)


def measure(bench: Bench, variant: str, repeats: int) -> Speed:
    """Measure a variant; the three measurements are interleaved, so that load on the machine affects each alike."""
    figures: dict[str, list[float]] = {"loader": [], "step": [], "together": []}
    for _ in range(repeats):
        for name, values in figures.items():
            values.append(getattr(bench, name)())
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratio = medians["together"] / min(medians["loader"], medians["step"])
    return Speed(variant=variant, rows=bench.rows, **medians, ratio=ratio, **bench.parts())


def main(words: Sequence[str] | None = None) -> int:
    """Print the table of a configuration on a corpus; return the exit code, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", type=Path, help="YAML file, such as training/configs/demo.yaml")
    parser.add_argument("--corpus", type=Path, required=True, help="folder that `prepare` or `pack` made")
    add_device(parser)
    parser.add_argument("--variants", metavar="A,B,…", default=",".join(VARIANTS), help="which to measure (all)")
    parser.add_argument("--updates", type=int, default=20, metavar="N", help="updates of a repeat (20)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="repeats; the median is reported (3)")
    add_overrides(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args(words)
    try:
        return run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code, or raise UserError."""
    if arguments.updates < 1 or arguments.repeats < 1:
        raise UserError("--updates and --repeats must be at least 1")
    config = load_config(arguments.config, arguments.overrides)
    corpus, device = load_corpus(arguments.corpus), choose_device(arguments.device)
    torch.backends.cudnn.benchmark = True
    data = config.data
    about = machine_of(device)
    name = about["device"] if device.type == "cuda" else about["processor"]
    machine = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{machine}; crops of {data.crop_seconds:g} s, {data.readers} readers")
    print("variant    rows   loader/s     step/s   together  ratio  ms to read   draw    mix")
    speeds = []
    for variant in arguments.variants.split(","):
        speed = measure(Bench(config, variant, corpus, device, arguments.updates), variant, arguments.repeats)
        rates = f"{speed.loader:10.1f} {speed.step:10.1f} {speed.together:10.1f} {speed.ratio:6.2f}"
        costs = f"{speed.reading:10.3f} {speed.drawing:6.3f} {speed.mixing:6.3f}"
        print(f"{variant:9} {speed.rows:5} {rates}  {costs}", flush=True)
        speeds.append(asdict(speed))
    if arguments.json:
        record = {"machine": machine, "revision": code_revision(), "config": str(arguments.config), "speeds": speeds}
        write_whole(arguments.json, json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
