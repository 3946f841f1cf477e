"""One small world for all tests: a corpus, trained variants, their bundles and a server, made by the real commands."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.harness import ServerProcess

VARIANTS = ("clean", "act-da")
ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a module's command line as a user would; fail the test with its output if it fails."""
    line = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=1800, cwd=ROOT)
    assert done.returncode == 0, f"{' '.join(line)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo corpus of eight speakers."""
    folder = tmp_path_factory.mktemp("world") / "corpus"
    run("training", "prepare", "demo", "--speakers", "8", "--utterances-per-speaker", "10", "--out", folder)
    return folder


@pytest.fixture(scope="session")
def runs(corpus: Path) -> dict[str, Path]:
    """Two variants of the demo's network, trained just enough to tell speakers apart."""
    settings = [
        f"--set={setting}"
        for setting in ("data.batch_size=16", "data.crop_seconds=1.0", "intervals.dev=60", "optimiser.warmup=0.2")
    ]
    folders = {variant: corpus.parent / "runs" / variant for variant in VARIANTS}
    for variant, folder in folders.items():
        config = ("--config", "training/configs/demo.yaml", "--updates", "60")
        run("training", "fit", *config, *settings, "--variant", variant, "--corpus", corpus, "--out", folder)
    return folders


@pytest.fixture(scope="session")
def bundles(runs: dict[str, Path]) -> Path:
    """The exported bundles of those variants."""
    folder = next(iter(runs.values())).parents[1] / "bundles"
    run("export", *runs.values(), "--out", folder)
    return folder


@pytest.fixture(scope="session")
def server(bundles: Path) -> Iterator[ServerProcess]:
    """A real server process with these bundles."""
    with ServerProcess(bundles) as process:
        yield process
