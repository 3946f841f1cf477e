"""Progress of an evaluation where there is no terminal."""

import io

from rich.console import Console

from speakerlens.training.evaluation.comparison.evaluate import LineProgress


def test_every_tenth_of_a_task_is_a_line() -> None:
    output = io.StringIO()
    with LineProgress(Console(file=output, width=100)) as progress:
        task = progress.add_task("accuracy", total=200)
        for _ in range(200):
            progress.advance(task)
        other = progress.add_task("deletion index", total=None)
        progress.update(other, completed=0, total=4)
        for done in (1, 2, 4):
            progress.update(other, completed=done, total=4)
    lines = output.getvalue().splitlines()
    assert len(lines) == 13
    assert lines[0].startswith("accuracy: 20 of 200, ")
    assert lines[9].startswith("accuracy: 200 of 200, ")
    assert [line.partition(",")[0] for line in lines[10:]] == [f"deletion index: {done} of 4" for done in (1, 2, 4)]
