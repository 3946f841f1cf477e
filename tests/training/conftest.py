"""A toy corpus, two variants trained on it for a moment, and their evaluation, all through the command line."""

from pathlib import Path

import pytest

from speakerlens.training.cli import main
from tests.training.toy import make_corpus, write_config


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers with noise and rooms; no music, and too few talkers for babble."""
    return make_corpus(tmp_path_factory.mktemp("toy-corpus")).root


@pytest.fixture(scope="session")
def toy_runs(toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders by variant."""
    folder = tmp_path_factory.mktemp("toy-runs")
    config = write_config(folder)
    runs = {variant: folder / variant for variant in ("clean", "act-da")}
    for variant, run in runs.items():
        words = [
            "fit",
            "--config",
            config,
            "--variant",
            variant,
            "--corpus",
            toy_corpus,
            "--out",
            run,
            "--device",
            "cpu",
        ]
        assert main([str(word) for word in words]) == 0
    return runs


@pytest.fixture(scope="session")
def evaluated(toy_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `evaluate` wrote for both runs."""
    out = tmp_path_factory.mktemp("evaluated")
    assert main(["evaluate", *map(str, toy_runs.values()), "--out", str(out), "--device", "cpu"]) == 0
    return out
