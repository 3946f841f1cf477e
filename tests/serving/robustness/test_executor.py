"""What is measured beside the requests: bounded, counted, and no trouble after the end."""

import threading

import pytest

from speakerlens.serving.metrics import Metrics
from speakerlens.serving.robustness import observer
from speakerlens.serving.robustness.observer import BoundedExecutor


def dropped(metrics: Metrics) -> float | None:
    labels = {"work": "measure", "outcome": "dropped"}
    return metrics.registry.get_sample_value("speakerlens_background_total", labels)


def test_work_beyond_the_bound_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "MOST_WAITING", 3)
    metrics, gate = Metrics(), threading.Event()
    thread = BoundedExecutor(metrics.robustness)
    first = thread.submit(1, gate.wait, 20)
    others = [thread.submit(1, int, "7") for _ in range(4)]
    assert [other is None for other in others] == [False, False, True, True]
    assert dropped(metrics) == 2
    gate.set()
    assert first is not None
    assert first.result(20)
    assert [other.result(20) for other in others if other is not None] == [7, 7]
    # Room is given back, also by what fails.
    for _ in range(5):
        failed = thread.submit(1, int, "x")
        assert failed is not None
        assert isinstance(failed.exception(20), ValueError)
        thread.thread.submit(int).result(20)
    assert dropped(metrics) == 2
    thread.close()


def test_a_group_that_is_dropped_counts_all_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "MOST_WAITING", 0)
    metrics = Metrics()
    thread = BoundedExecutor(metrics.robustness)
    assert thread.submit(3, int, "7") is None
    assert dropped(metrics) == 3
    thread.close()


def test_a_closed_executor_ignores_work() -> None:
    metrics = Metrics()
    thread = BoundedExecutor(metrics.robustness)
    thread.close()
    assert thread.submit(1, int, "7") is None
    assert dropped(metrics) == 0
