"""Train the runs of a plan, several at a time, each in its own process."""

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

from speakerlens.processor import cores
from speakerlens.training.checkpoint import LOG
from speakerlens.training.config import dump_config
from speakerlens.training.errors import UserError
from speakerlens.training.files import make_folder
from speakerlens.training.fit import StopRequest
from speakerlens.training.run_log import read_log
from speakerlens.training.study.plan import Plan, PlannedRun, updates_done

CONFIG = "config.yaml"

_POLL_SECONDS = 0.5
_TAIL_LINES = 15
_TAIL_BYTES = 16_384


def train(plan: Plan, jobs: int, device: str, console: Console, lock: int) -> int:
    """Train the runs that are not finished, `jobs` at a time; return 0, or 128 + signal if interrupted.

    Each run is `python -m training fit` with an equal part of the cores. SIGINT or SIGTERM stops all of them at their
    next checkpoint, and the same call resumes from there.

    Args:
        plan: what to train.
        jobs: processes at a time.
        device: as for `fit`.
        console: shows a line per finished run, and a progress bar on a terminal.
        lock: file descriptor that the processes inherit and keep open.

    Raises:
        UserError: a run failed; the message ends with its last output. The others are stopped.
    """
    done = {run: updates_done(run) for run in plan.runs}
    waiting = [run for run in plan.runs if done[run] < plan.config.updates]
    if not waiting:
        return 0
    make_folder(plan.out)
    (plan.out / CONFIG).write_text(dump_config(plan.config), encoding="utf-8")
    display = _Display(plan, done, jobs, console)
    with StopRequest() as stop, display, _Trainings(plan, device, jobs, lock) as trainings:
        while (waiting or trainings.running) and not stop.signal:
            while waiting and len(trainings.running) < jobs:
                trainings.start(waiting.pop(0))
            time.sleep(_POLL_SECONDS)
            for run, code in trainings.ended():
                if code != 0:
                    raise UserError(_failure(run, code))
                display.finished(run)
            display.update(trainings.running)
    if stop.signal:
        console.print("stopped; run the same command to resume", highlight=False)
        return 128 + stop.signal
    return 0


def default_jobs(on_cuda: bool) -> int:
    """Return the number of parallel runs: one per core without a GPU, one on a GPU.

    Small networks gain little from more threads.
    """
    return 1 if on_cuda else cores()


class _Trainings:
    """The running processes; leaving the context stops them and waits for their checkpoints."""

    def __init__(self, plan: Plan, device: str, jobs: int, lock: int) -> None:
        self._plan, self._device, self._lock = plan, device, lock
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores() // jobs)), "PYTHONUNBUFFERED": "1"}
        self._processes: dict[PlannedRun, subprocess.Popen[bytes]] = {}

    @property
    def running(self) -> Sequence[PlannedRun]:
        return tuple(self._processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C raises KeyboardInterrupt in `wait`: kill at once.
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
        command = [sys.executable, "-m", "speakerlens.training", "fit", *map(str, words)]
        with run.output.open("ab") as output:
            self._processes[run] = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                pass_fds=(self._lock,),
                # Keep the terminal's Ctrl-C from `fit`, which terminates at a second signal.
                start_new_session=True,
            )

    def ended(self) -> list[tuple[PlannedRun, int]]:
        """Return the runs that ended since the last call, with their exit codes."""
        codes = [(run, process.poll()) for run, process in self._processes.items()]
        ended = [(run, code) for run, code in codes if code is not None]
        for run, _ in ended:
            del self._processes[run]
        return ended


@dataclass
class _Display:
    """Progress display: a line for each finished run, and on a terminal a bar over all of them.

    The bar counts network work: updates times `Plan.work`.
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
        self._print(f"training {count} runs, {self._finished} of them done, {self.jobs} at a time")
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def finished(self, run: PlannedRun) -> None:
        """Print a line for a run that has finished."""
        self.done[run] = self.plan.config.updates
        self._finished += 1
        last: dict[str, Any] = next(
            (record for record in reversed(read_log(run.folder)) if record["event"] == "dev"), {}
        )
        accuracies = [f"{name} {last[name]:.1f} %" for name in ("clean", "corrupted") if name in last]
        shown = f"; dev {', '.join(accuracies)}" if accuracies else ""
        self._print(f"{self._finished}/{len(self.plan.runs)} trained: {run}{shown}")

    def update(self, running: Sequence[PlannedRun]) -> None:
        """Advance the bar to the last update in the running processes' logs."""
        for run in running:
            self.done[run] = _last_step(run) or self.done[run]
        self._bar.update(self._task, completed=self._work())

    def _work(self) -> int:
        return round(sum(done * self._work_of(run) for run, done in self.done.items()))

    def _work_of(self, run: PlannedRun) -> float:
        """Return the network work of one of its updates."""
        return self.plan.work(run.variant)

    def _print(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _failure(run: PlannedRun, code: int) -> str:
    reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{run}: its training ended with {reason}; the end of {run.output}:\n{_tail(run.output)}"


def _last_step(run: PlannedRun) -> int:
    """Return the last update in the log of a running training; 0 if there is none."""
    if not (run.folder / LOG).exists():
        return 0
    for line in reversed(_last_lines(run.folder / LOG)):
        try:
            step: int = json.loads(line)["step"]
        except ValueError:  # still being written, or cut off at the beginning of the tail
            continue
        return step
    return 0


def _tail(path: Path) -> str:
    return "\n".join(f"  {line}" for line in _last_lines(path)[-_TAIL_LINES:])


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace").splitlines()
