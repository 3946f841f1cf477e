import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from speakerlens.training import logs
from speakerlens.training.logs import Report, RunLog
from speakerlens.training.loop import Figures

FIGURES = Figures(1.25, 1.0, 0.25, 3.0, 50.0, 0.01, 0.1)


def speak(run: Path, console: Console) -> None:
    with Report(run, "act-da", 0, 3, console) as report:
        report.start({"speakers": 3}, rows=12)
        report.update(1, FIGURES, to_log=False)
        report.dev(1, lambda: {"clean": 99.0, "corrupted": 71.6})
        report.update(2, FIGURES, to_log=True)
        report.update(3, FIGURES, to_log=True)
        report.stop(3, "finished, 3 updates")


def test_without_terminal_lines_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_SECONDS_BETWEEN_LINES", 3600.0)
    text = StringIO()
    speak(tmp_path, Console(file=text, width=40))
    first, second = text.getvalue().splitlines()  # the last update is always printed; long lines are not wrapped
    assert first.startswith("act-da: 3/3  loss 1.25  accuracy 50 %  dev clean 99 corrupted 72  ")
    assert second == f"{tmp_path}: finished, 3 updates"


def test_progress_bar_fits_80_columns(tmp_path: Path) -> None:
    text = StringIO()
    speak(tmp_path, Console(file=text, width=80, force_terminal=True, color_system=None))
    for part in ("act-da", "━", "3/3", "loss 1.25  dev clean 99 corrupted 72", "finished, 3 updates"):
        assert part in text.getvalue()


def test_resuming_drops_lines_after_the_checkpoint(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write("update", step, {"loss": float(step)})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "update", "st')  # the process died while writing
    with RunLog(tmp_path, 2) as log:
        log.write("update", 3, {"loss": 30.0})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]
