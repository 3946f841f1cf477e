"""Train the runs of a plan, several at a time, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from speakerlens.training.checkpoint import LOG
from speakerlens.training.config import dump_config
from speakerlens.training.errors import UserError
from speakerlens.training.files import make_folder
from speakerlens.training.fit import StopRequest
from speakerlens.training.study.plan import Plan, PlannedRun, updates_done

CONFIG = "config.yaml"

_SECONDS_BETWEEN_LOOKS = 0.5
_TAIL_LINES = 15
_TAIL_BYTES = 16_384


def train(plan: Plan, jobs: int, device: str, console: Console, lock: int) -> int:
    """Train what is not trained yet, `jobs` runs at a time; returns 0, or 128 + signal if interrupted.

    Each run is `python -m training fit` with an equal part of the cores. SIGINT or SIGTERM stops all of them at their
    next checkpoint, and the same call goes on from there.

    Args:
        plan: what to train.
        jobs: processes at a time.
        device: as for `fit`.
        console: for a line per finished run, and a bar if it is a terminal.
        lock: file descriptor that the processes keep open as long as they live.

    Raises:
        UserError: a run failed; the message names it and ends with the last lines it printed. The others are stopped.
    """
    done = {run: updates_done(run) for run in plan.runs}
    waiting = [run for run in plan.runs if done[run] < plan.config.updates]
    if not waiting:
        return 0
    make_folder(plan.out)
    (plan.out / CONFIG).write_text(dump_config(plan.config), encoding="utf-8")
    board = _Board(plan, done, jobs, console)
    with StopRequest() as stop, board, _Trainings(plan, device, jobs, lock) as trainings:
        while (waiting or trainings.running) and not stop.signal:
            while waiting and len(trainings.running) < jobs:
                trainings.start(waiting.pop(0))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for run, code in trainings.ended():
                if code != 0:
                    raise UserError(_failure(run, code))
                board.finished(run)
            board.look(trainings.running)
    if stop.signal:
        console.print("stopped; the same command goes on", highlight=False)
        return 128 + stop.signal
    return 0


def default_jobs(on_cuda: bool) -> int:
    """Runs at a time: one a core without a GPU (small networks gain little from more threads), one on a GPU."""
    return 1 if on_cuda else _cores()


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's log; a last one that is still being written is left out."""
    try:
        lines = (run / LOG).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class _Trainings:
    """The running processes; leaving the context stops them and waits until they have written their checkpoints."""

    def __init__(self, plan: Plan, device: str, jobs: int, lock: int) -> None:
        self._plan, self._device, self._lock = plan, device, lock
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, _cores() // jobs)), "PYTHONUNBUFFERED": "1"}
        self._processes: dict[PlannedRun, subprocess.Popen[bytes]] = {}

    @property
    def running(self) -> Sequence[PlannedRun]:
        return tuple(self._processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C comes out of `wait` as KeyboardInterrupt: then nothing is waited for any more.
        try:
            for process in self._processes.values():
                process.terminate()
            for process in self._processes.values():
                process.wait()
        finally:
            for process in self._processes.values():
                process.kill()

    def start(self, run: PlannedRun) -> None:
        make_folder(run.folder)
        words = ["--config", self._plan.out / CONFIG, "--seed", run.seed, "--variant", run.variant]
        words += ["--corpus", self._plan.corpus.root, "--out", run.folder, "--device", self._device]
        command = [sys.executable, "-m", "training", "fit", *map(str, words)]
        with run.output.open("ab") as output:
            self._processes[run] = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                pass_fds=(self._lock,),
                # Out of reach of the terminal's Ctrl-C: `fit` takes a second signal as a wish to end at once.
                start_new_session=True,
            )

    def ended(self) -> list[tuple[PlannedRun, int]]:
        """Give the runs that ended since the last call, with their exit codes."""
        codes = [(run, process.poll()) for run, process in self._processes.items()]
        ended = [(run, code) for run, code in codes if code is not None]
        for run, _ in ended:
            del self._processes[run]
        return ended


@dataclass
class _Board:
    """What is shown of the work: a line for each finished run, and a bar over all of them on a terminal.

    The bar counts updates times the batch sizes that go through the network in each.
    """

    plan: Plan
    done: dict[PlannedRun, int]
    jobs: int
    console: Console
    _bar: Progress = field(init=False)
    _finished: int = field(init=False)

    def __post_init__(self) -> None:
        self._finished = sum(done >= self.plan.config.updates for done in self.done.values())
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        total = sum(self._work_of(run) for run in self.plan.runs) * self.plan.config.updates
        self._task = self._bar.add_task("training", total=total, completed=self._work())

    def __enter__(self) -> Self:
        count = len(self.plan.runs)
        self._say(f"training {count} runs, {self._finished} of them done, {self.jobs} at a time")
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def finished(self, run: PlannedRun) -> None:
        """Tell of a run that has ended well."""
        self.done[run] = self.plan.config.updates
        self._finished += 1
        last: dict[str, Any] = next(
            (record for record in reversed(read_log(run.folder)) if record["event"] == "dev"), {}
        )
        accuracies = [f"{name} {last[name]:.1f} %" for name in ("clean", "corrupted") if name in last]
        shown = f"; dev {', '.join(accuracies)}" if accuracies else ""
        self._say(f"{self._finished}/{len(self.plan.runs)} trained: {run}{shown}")

    def look(self, running: Sequence[PlannedRun]) -> None:
        """Move the bar to where the running processes' logs are."""
        for run in running:
            self.done[run] = _last_step(run) or self.done[run]
        self._bar.update(self._task, completed=self._work())

    def _work(self) -> int:
        return round(sum(done * self._work_of(run) for run, done in self.done.items()))

    def _work_of(self, run: PlannedRun) -> float:
        """Network work of one of its updates."""
        return self.plan.work(run.variant)

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _failure(run: PlannedRun, code: int) -> str:
    reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{run}: its training ended with {reason}; the end of {run.output}:\n{_tail(run.output)}"


def _last_step(run: PlannedRun) -> int:
    """Read where a running training is; 0 where its log does not tell."""
    if not (run.folder / LOG).exists():
        return 0
    for line in reversed(_last_lines(run.folder / LOG)):
        try:
            step: int = json.loads(line)["step"]
        except ValueError:  # still being written, or cut off by the beginning of the tail
            continue
        return step
    return 0


def _tail(path: Path) -> str:
    return "\n".join(f"  {line}" for line in _last_lines(path)[-_TAIL_LINES:])


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace").splitlines()


def _cores() -> int:
    return len(os.sched_getaffinity(0))
