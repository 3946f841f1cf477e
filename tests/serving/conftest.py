"""Toy bundles, and a server that serves them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import toy
from tests.serving.harness import ServerProcess

SEEDS = {("act-da", 1): 3, ("clean", 1): 0, ("clean", 2): 1, ("da", 1): 2}


@pytest.fixture(scope="session")
def toy_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three variants, one of them in two versions; SEEDS gives their weights."""
    root = tmp_path_factory.mktemp("toy-bundles")
    for (variant, version), seed in SEEDS.items():
        toy.write_bundle(root, variant, version, seed)
    return root


@pytest.fixture(scope="session")
def toy_server(toy_bundles: Path) -> Iterator[ServerProcess]:
    """Shared by tests that leave it as they found it.

    It has one instance: what keeps the device busy in a test keeps all of it busy.
    """
    with ServerProcess(toy_bundles, "--max-seconds=60", "--http-port=0", "--instances=1", fresh=True) as server:
        yield server
