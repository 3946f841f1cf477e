"""A toy corpus, two variants trained on it for a moment, and their evaluation, all through the command line."""

from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest

from speakerlens.training.checkpoint import code_revision
from speakerlens.training.cli import main
from speakerlens.training.config import Config
from speakerlens.training.data.manifest import Corpus, Split
from tests.sharing import made_once
from tests.training.toy import make_corpus, toy_config, write_config

FEW: Mapping[Split, int] = {"train": 1, "dev": 1, "test": 1}


@pytest.fixture(scope="session", autouse=True)
def _revision() -> None:
    """Ask git for the code's revision, which is cached: tests marked `unit` must not start a process for it."""
    code_revision()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Return three speakers with noise and rooms; no music, too few talkers for babble. Copy before changing it."""
    return make_corpus(tmp_path_factory.mktemp("toy-corpus"))


@pytest.fixture(scope="session")
def toy_corpus(corpus: Corpus) -> Path:
    """Return the folder of that corpus."""
    return corpus.root


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return a configuration of six updates."""
    return toy_config(tmp_path_factory.mktemp("toy-config"))


@pytest.fixture(scope="session")
def demo_corpus(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return a demo corpus of four speakers with four utterances each, and little interference."""
    pytest.importorskip("espeakng_loader")

    def make(out: Path) -> None:
        assert prepare_small_demo(out) == 0

    return made_once(tmp_path_factory, worker_id, "small-demo", make)


def prepare_small_demo(out: Path, *words: str) -> int:
    """Make the demo corpus in `out` with as few noises, pieces of music and rooms as possible; return the exit code."""
    module = "speakerlens.training.data.prepare.demo"
    arguments = ["prepare", "demo", "--speakers", "4", "--utterances-per-speaker", "4", "--out", str(out), *words]
    with mock.patch.multiple(module, _NOISES_OF_A_KIND=FEW, _PIECES=FEW, _ROOMS=FEW):
        return main(arguments)


@pytest.fixture(scope="session")
def toy_runs(toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return run folders by variant."""
    folder = tmp_path_factory.mktemp("toy-runs")
    config = write_config(folder)
    runs = {variant: folder / variant for variant in ("clean", "act-da")}
    for variant, run in runs.items():
        words = ["--config", config, "--variant", variant, "--corpus", toy_corpus, "--out", run, "--device", "cpu"]
        assert main(["fit", *map(str, words)]) == 0
    return runs


@pytest.fixture(scope="session")
def evaluated(toy_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `evaluate` wrote for both runs."""
    out = tmp_path_factory.mktemp("evaluated")
    assert main(["evaluate", *map(str, toy_runs.values()), "--out", str(out), "--device", "cpu"]) == 0
    return out
