"""A folder that appears whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speakerlens.training.errors import UserError


def is_free(folder: Path) -> bool:
    """Whether a folder is missing or empty."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to fill, which becomes `out` at the end; what an interrupted run left is replaced.

    Being beside `out`, it may refer to files elsewhere by the relative paths that `out` will need.

    Raises:
        UserError: `out` is not free, or cannot be made.
    """
    out = out.resolve()
    if not is_free(out):
        raise UserError(f"{out}: is not empty; remove it or name another folder with --out")
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror})") from error
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if out.exists():
        out.rmdir()
    unfinished.rename(out)
