"""The soak itself: what it counts as a fault, and how it reads memory."""

from pathlib import Path

import pytest

from benchmarks import soak, traffic
from benchmarks.traffic import Scenario
from tests.serving.harness import ServerProcess


def test_growth_ignores_the_warm_up() -> None:
    memory = [(float(second), 100.0 + second if second < 25 else 200.0) for second in range(95)]
    assert soak.growth(memory, 100) == (200.0, 200.0)
    assert soak.growth([(at, size + at) for at, size in memory], 100) == (229.5, 292.0)


@pytest.mark.parametrize(("statuses", "faults"), [(("NOT_FOUND",), False), (("OK",), True)])
def test_an_unexpected_status_is_a_failure(
    toy_server: ServerProcess, monkeypatch: pytest.MonkeyPatch, statuses: tuple[str, ...], faults: bool
) -> None:
    monkeypatch.setattr(soak, "SCENARIOS", (Scenario(traffic.unknown_variant, 1, statuses),))
    tally = soak.Tally()
    soak.soak(toy_server, 1.0, tally)
    assert set(tally.counts) == {("unknown_variant", "NOT_FOUND")}
    assert bool(tally.faults) is faults
    assert all(size > 10 for _, size in tally.memory)


def test_the_report_fails_for_growth_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tally(last: float) -> soak.Tally:
        found = soak.Tally()
        found.memory = [(float(second), 100.0 if second < 50 else last) for second in range(100)]
        found.counts["identify", "OK"] = 3
        return found

    assert soak.report(tally(104.0), 100, None) == 0
    assert soak.report(tally(106.0), 100, tmp_path / "soak.json") == 1
    assert "memory grew by 6.0%, more than 5%" in capsys.readouterr().out
    assert '"last_mb": 106.0' in (tmp_path / "soak.json").read_text()
    wrong = tally(100.0)
    wrong.faults.append("identify ended in UNKNOWN: what")
    assert soak.report(wrong, 100, None) == 1
