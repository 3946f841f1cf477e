"""Write files and folders completely or not at all."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from speakerlens.training.errors import UserError


def make_folder(path: Path) -> None:
    """Make a folder and its parents unless it exists.

    Raises:
        UserError: a file is in the way, or the system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise UserError(f"{path}: cannot be made a folder ({reason}); choose another") from error


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Check before the work that no folder is in the way of the files it will write.

    Raises:
        UserError: a folder is.
    """
    for name in names:
        if (folder / name).is_dir():
            raise UserError(f"{folder / name}: cannot be written (a folder is in the way); remove it and run again")


def write_whole(path: Path, text: str) -> None:
    """Replace a text file atomically; make its parent folders.

    Raises:
        UserError: a folder is in the way, or the system refuses.
    """
    make_folder(path.parent)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room for it and run again") from error


def is_free(folder: Path) -> bool:
    """Return whether a folder is missing or empty."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` to fill, renamed to `out` at the end; remains of an interrupted run are replaced.

    As a sibling of `out` it needs the same relative paths.

    Raises:
        UserError: `out` is not free, or cannot be made.
    """
    out = out.resolve()
    if not is_free(out):
        raise UserError(f"{out}: is not empty; remove it or choose another folder with --out")
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
