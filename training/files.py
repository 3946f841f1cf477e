"""Folders for what commands write."""

import os
from pathlib import Path

from speakerlens.training.errors import UserError


def make_folder(path: Path) -> None:
    """Make a folder with those above it, unless it is there.

    Raises:
        UserError: a file is in the way, or the system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise UserError(f"{path}: cannot be made a folder ({reason}); name another") from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step, and the folders above it: whatever happens, it is whole or as it was.

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
