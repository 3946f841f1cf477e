"""A toy run and its probes."""

from pathlib import Path

import pytest

from speakerlens.training.checkpoint import Run, load_run
from speakerlens.training.data.manifest import load_corpus
from speakerlens.training.evaluation.maps.probes import Probes, choose_probes


@pytest.fixture(scope="session")
def toy_run(toy_runs: dict[str, Path]) -> Run:
    return load_run(toy_runs["act-da"])


@pytest.fixture(scope="session")
def toy_probes(toy_run: Run) -> Probes:
    return choose_probes(load_corpus(toy_run.corpus), toy_run.speakers)
