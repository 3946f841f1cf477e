"""One small world for all tests: a corpus, trained variants, their bundles and a server, made by the real commands.

Every test is marked `unit` or `process`: `process` where it or a fixture of it starts a server or a command.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.marking import mark
from tests.serving.harness import ServerProcess
from tests.sharing import made_once

VARIANTS = ("clean", "act-da")
ROOT = Path(__file__).resolve().parents[1]
# These take longest and begin first, so that the workers end together; the first makes the trained world of others.
FIRST = (
    *("test_end_to_end", "test_study", "test_distributed", "test_readme", "test_stream", "test_add", "test_restart"),
    *("test_probing", "test_traffic", "test_verify", "test_long_audio", "test_watch", "test_evaluate", "test_damaged"),
    *("test_queries", "test_database", "test_lifecycle", "test_stopping", "test_rules", "test_transfer"),
)

# A shell has its background jobs ignore Ctrl-C, which programs under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a module's command line as a user would; fail the test with its output if it fails."""
    line = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=1800, cwd=ROOT)
    assert done.returncode == 0, f"{' '.join(line)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test, and put the files that take longest first."""
    for item in items:
        mark(item)
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return a demo corpus of eight speakers."""
    small = ("--speakers", "8", "--utterances-per-speaker", "10")
    return made_once(
        tmp_path_factory, worker_id, "corpus", lambda out: run("training", "prepare", "demo", *small, "--out", out)
    )


@pytest.fixture(scope="session")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Path]:
    """Return two variants of the demo's network, trained just enough to tell speakers apart."""
    settings = [
        f"--set={setting}"
        for setting in (
            "data.batch_size=16",
            "data.crop_seconds=1.0",
            "intervals.dev=40",
            "optimiser.warmup=0.2",
            "network.blocks=[1,2,2,1]",
            "network.width=4",
        )
    ]
    config = ("--config", "training/configs/demo.yaml", "--updates", "40", *settings)

    def train(out: Path) -> None:
        for variant in VARIANTS:
            run("training", "fit", *config, "--variant", variant, "--corpus", corpus, "--out", out / variant)

    folder = made_once(tmp_path_factory, worker_id, "runs", train)
    return {variant: folder / variant for variant in VARIANTS}


@pytest.fixture(scope="session")
def bundles(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return the folder with the exported bundles of those variants."""
    return made_once(tmp_path_factory, worker_id, "bundles", lambda out: run("export", *runs.values(), "--out", out))


@pytest.fixture(scope="session")
def server(bundles: Path) -> Iterator[ServerProcess]:
    """Yield a real server process with these bundles."""
    with ServerProcess(bundles, fresh=True) as process:
        yield process


@pytest.fixture(autouse=True)
def _no_process_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that is marked `unit` and starts a process all the same."""
    if request.node.get_closest_marker("unit"):
        monkeypatch.setattr("subprocess.Popen.__init__", _refuse_process)


def _refuse_process(process: object, arguments: Any, *rest: Any, **options: Any) -> None:
    # Who measures notes the revision and the machine; the decoder's process is part of reading a file.
    if "git" in arguments or "uname" in arguments or any("decoder_process" in str(each) for each in arguments):
        _start_process(process, arguments, *rest, **options)
    else:
        raise AssertionError(f"a test marked `unit` starts {arguments}; mark it `process` (see tests/marking.py)")


# By its name as text: code that refers to Popen would mark every test `process`.
_start_process = vars(subprocess)["Popen"].__init__
