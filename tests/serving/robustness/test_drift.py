"""Drift: the last answers of each bundle against its own baseline."""

import math
from pathlib import Path

import pytest

from speakerlens.measures.distribution import Bins, population_stability_index
from speakerlens.serving.bundle import Bundle, Distribution
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.reader import read_bundle
from speakerlens.serving.robustness.drift import Drift, Window
from tests.serving import toy


def bundle(root: Path, version: int) -> Bundle:
    return read_bundle(toy.write_bundle(root, "v", version, seed=version))


def page(drift: Drift) -> dict[tuple[str, str, str], float]:
    """Value by metric without prefix, variant and measure."""
    return {
        (sample.name.removeprefix("speakerlens_"), sample.labels["variant"], sample.labels["measure"]): sample.value
        for family in drift.collect()
        for sample in family.samples
    }


def test_a_full_window_drops_its_oldest_value() -> None:
    expected = Distribution(Bins((0.0, 10.0)), (10, 30, 60), 100, 12.0)
    window = Window(expected, 4)
    assert math.isnan(window.index)
    for value in (-5.0, -5.0, 5.0, 15.0, 10.0):
        window.add(value)
    assert len(window) == 4
    assert window.index == population_stability_index((10, 30, 60), (1, 1, 2))


def test_drift_of_the_newest_version_starts_empty(tmp_path: Path) -> None:
    drift, first, second = Drift(100), bundle(tmp_path, 1), bundle(tmp_path, 2)
    drift.set_bundles([first])
    assert page(drift)["drift_samples", "v", "snr_db"] == 0
    assert ("drift_psi", "v", "snr_db") not in page(drift)
    for value in (30.0, 30.0, 10.0, math.nan):
        drift.add(first, {"snr_db": value, "margin": 0.9, "of no baseline": 1.0})
    shown = page(drift)
    assert shown["drift_samples", "v", "snr_db"] == 3
    assert shown["drift_samples", "v", "margin"] == 4
    assert shown["drift_psi", "v", "snr_db"] == population_stability_index((50, 50), (1, 2))
    assert {measure for _, _, measure in shown} == toy.baseline()["distributions"]["clean"].keys()

    drift.set_bundles([first, second])
    assert page(drift)["drift_samples", "v", "snr_db"] == 0
    drift.add(first, {"snr_db": 30.0})
    assert page(drift)["drift_samples", "v", "snr_db"] == 0
    drift.add(second, {"snr_db": 30.0})
    assert page(drift)["drift_samples", "v", "snr_db"] == 1

    drift.set_bundles([first])
    assert page(drift)["drift_samples", "v", "snr_db"] == 4
    drift.set_bundles([])
    assert page(drift) == {}
    drift.add(first, {"snr_db": 30.0})
    assert page(drift) == {}


def test_drift_is_exported_with_the_metrics(tmp_path: Path) -> None:
    metrics, drift, one = Metrics(), Drift(10), bundle(tmp_path, 1)
    metrics.page.registry.register(drift)
    drift.set_bundles([one])
    drift.add(one, {"entropy": 0.1})
    labels = {"variant": "v", "measure": "entropy"}
    assert metrics.registry.get_sample_value("speakerlens_drift_samples", labels) == 1
    assert metrics.registry.get_sample_value("speakerlens_drift_psi", labels) == pytest.approx(
        population_stability_index((50, 50), (1, 0))
    )
    drift.set_bundles([])
    assert metrics.registry.get_sample_value("speakerlens_drift_samples", labels) is None
