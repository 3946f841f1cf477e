"""A trained bundle whose weights are damaged is served without an error; its probes show it without any request."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.damage import damage, exported, served

PERIOD, NOISE = 20.0, 0.6
CLEAN = ("accuracy_ratio", "clean", "")


@pytest.fixture(scope="module")
def bundle(bundles: Path) -> Path:
    return bundles / "act-da" / "1"


def accuracy(values: dict[tuple[str, str, str], float]) -> float:
    """Over all conditions."""
    return float(np.mean([value for (name, *_), value in values.items() if name == "accuracy_ratio"]))


def test_an_undamaged_bundle_keeps_its_accuracy(bundle: Path) -> None:
    """The same answers to the last utterance, through the decoder, the queues and the batches of a real server."""
    found, expected = served(bundle, 0.0, period=PERIOD).values, exported(bundle).values
    assert found.keys() == expected.keys()
    assert len(found) == 12 + 10
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-3 if key[0] == "deletion_index" else 1e-9)


def test_damaged_weights_show_within_a_period(bundle: Path) -> None:
    """`served` asks the server nothing."""
    found, expected = served(bundle, NOISE, period=PERIOD).values, exported(bundle).values
    assert found[CLEAN] < expected[CLEAN] - 0.25
    assert accuracy(dict(found)) < accuracy(dict(expected)) - 0.1


@pytest.mark.parametrize("graph", ["predict.onnx", "verify.onnx"])
def test_one_damaged_graph_shows(bundle: Path, tmp_path: Path, graph: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "act-da" / "1"))
    damage(copy, NOISE, [graph])
    found, expected = served(copy, 0.0, period=PERIOD).values, exported(copy).values
    assert found[CLEAN] < expected[CLEAN]
    if graph == "verify.onnx":  # asked of clean speech alone
        assert {key: value for key, value in found.items() if key != CLEAN} == pytest.approx(
            {key: value for key, value in expected.items() if key != CLEAN}, rel=1e-3
        )
