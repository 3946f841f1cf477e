"""Report a run: JSON lines and TensorBoard on disk, a progress bar or plain lines on the terminal."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from speakerlens.training.checkpoint import LOG, TENSORBOARD
from speakerlens.training.loop import Figures

_SECONDS_BETWEEN_LINES = 5.0

Value = float | int | str | list[str] | None


class RunLog:
    """Writes RUN/log.jsonl and RUN/tensorboard. A context manager.

    Each line is an object with `event` ("start", "update", "dev", "stop"), `step` (updates done), `time` (seconds since
    1970) and the event's figures. On resuming at `step`, later lines are dropped, as those updates are repeated.
    """

    def __init__(self, run: Path, step: int) -> None:
        path = run / LOG
        if path.exists():
            _keep_until(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()

    def write(self, event: str, step: int, figures: Mapping[str, Value]) -> None:
        """Log an event after `step` updates; its numbers go to TensorBoard as `event/name`."""
        record = {"event": event, "step": step, "time": round(time.time(), 3), **figures}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in figures.items():
            if event in ("update", "dev") and isinstance(value, int | float):
                self._board.add_scalar(f"{event}/{name}", value, step)


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines of a log after `step`, and an incomplete last line."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    path.write_text("".join(kept), encoding="utf-8")


class Report:
    """The log on disk, and a progress bar on a terminal, else a line every few seconds.

    A context manager. With `run` None it writes and prints nothing.
    """

    def __init__(self, run: Path | None, title: str, done: int, updates: int, console: Console) -> None:
        self._run, self._title, self._updates = run, title, updates
        self._console = Console(quiet=True, force_terminal=False) if run is None else console
        self._log = None if run is None else RunLog(run, done)
        self._rows = 0
        self._counted, self._since = done, time.monotonic()
        self._printed = time.monotonic()
        self._rate = self._dev = ""
        self._bar: Progress | None = None
        if self._console.is_terminal:
            # Narrow enough for 80 columns, figures included.
            columns = (TextColumn("{task.description}"), BarColumn(16), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=self._console)
            self._task = self._bar.add_task(title, total=updates, completed=done, figures="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._log is not None:
            self._log.__exit__(kind, error, trace)

    def start(self, facts: Mapping[str, Value], rows: int) -> None:
        """Log the facts of a run; `rows` is the number of utterances per update."""
        self._rows = rows
        self._write("start", self._counted, {"variant": self._title, **facts})
        self._since = time.monotonic()

    def update(self, done: int, figures: Figures, to_log: bool) -> None:
        """Show an update's figures; log them if `to_log`."""
        if to_log:
            rate = (done - self._counted) * self._rows / max(1e-9, time.monotonic() - self._since)
            self._counted, self._since = done, time.monotonic()
            self._rate = f"  {rate:.0f} utterances/s"
            self._write("update", done, {**figures._asdict(), "utterances_per_second": round(rate, 1)})
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=f"loss {figures.loss:.2f}{self._dev}")
        elif time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES or done == self._updates:
            self._printed = time.monotonic()
            shown = f"loss {figures.loss:.2f}  accuracy {figures.accuracy:.0f} %{self._dev}{self._rate}"
            self.say(f"{self._title}: {done}/{self._updates}  {shown}")

    def plan(self, updates: int) -> None:
        """Take note of the number of updates of the whole run."""
        self._updates = updates
        if self._bar is not None:
            self._bar.update(self._task, total=updates)

    def dev(self, done: int, measure: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        """Measure, log and return the accuracy on the dev split, in percent by condition.

        Its time is excluded from the rate.
        """
        began = time.monotonic()
        accuracy = measure()
        self._since += time.monotonic() - began
        self._write("dev", done, accuracy)
        self._dev = "  dev " + " ".join(f"{name} {value:.0f}" for name, value in accuracy.items())
        return accuracy

    def stop(self, done: int, why: str) -> None:
        """Log and print the end of the run."""
        self._write("stop", done, {"why": why})
        if self._bar is not None:
            self._bar.stop()
        self.say(f"{self._run}: {why}")

    def _write(self, event: str, step: int, figures: Mapping[str, Value]) -> None:
        if self._log is not None:
            self._log.write(event, step, figures)

    def say(self, line: str) -> None:
        """Print a line above the progress bar, without wrapping."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
