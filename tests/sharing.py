"""Things that are made once for a whole test run, also where several processes run the tests (pytest-xdist)."""

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, worker: str, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` fills, once for all workers; the others wait for it.

    Args:
        factory: pytest's.
        worker: the fixture `worker_id`; `master` without pytest-xdist.
        name: of the folder.
        make: fills the folder, which is there and empty.

    Raises:
        RuntimeError: `make` failed in another worker, whose report has the reason.
    """
    base = factory.getbasetemp()
    root = base if worker == "master" else base.parent
    folder, done, failed = (root / f"{name}{suffix}" for suffix in ("", ".done", ".failed"))
    with FileLock(root / f"{name}.lock"):
        if failed.exists():
            raise RuntimeError(f"{name} could not be made, see {failed.read_text()}")
        if not done.exists():
            folder.mkdir()
            try:
                make(folder)
            except BaseException:
                failed.write_text(worker)
                raise
            done.touch()
    return folder
