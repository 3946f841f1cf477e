"""Write a bundle's folder completely or not at all."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from speakerlens.training.files import make_folder


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """Make a folder beside the final one, to be renamed into place; removed if it was not.

    Other exports of the same variant wait meanwhile, since the version number is written into the files.
    """
    parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    make_folder(parent)
    handle = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
        staging.chmod(0o755)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):  # not empty: a bundle was exported
            for folder in parents:
                folder.rmdir()
