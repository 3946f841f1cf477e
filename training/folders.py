"""Folders for what commands write."""

from pathlib import Path

from training.errors import UserError


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
