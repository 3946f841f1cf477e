"""The audio files of a command: how they are read, and how one that fails is told without stopping the others."""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from speakerlens.cli import outputs
from speakerlens.cli.failures import CommandError, Exit, complain, usage_error

FILE_HELP = "audio in any format that libsndfile reads; - is standard input"


def check(files: Sequence[str]) -> None:
    """Raise a `CommandError` where standard input would have to be read twice."""
    if files.count(outputs.STDIN) > 1:
        raise usage_error("- (standard input) can be read only once")


def read(file: str) -> bytes:
    """Return a file's content, or raise a `CommandError` that says why there is none."""
    try:
        return _read_standard_input() if file == outputs.STDIN else Path(file).read_bytes()
    except OSError as error:
        raise CommandError(Exit.INPUT, "UNREADABLE", error.strerror or str(error)) from error


def read_all(files: Sequence[str]) -> list[bytes]:
    """Return the content of files that are of use together only; the error names the one that cannot be read."""
    contents = []
    for file in files:
        try:
            contents.append(read(file))
        except CommandError as error:
            raise CommandError(error.exit_code, error.code, f"{outputs.title(file)}: {error}") from error
    return contents


def report(file: str, error: CommandError, *, as_json: bool) -> None:
    """Say on stderr, and in JSON on stdout, how a file failed."""
    # What stops everything, such as a server that is not there, is not this file's fault.
    complain(str(error) if error.stops else f"{outputs.title(file)}: {error}")
    if as_json:
        outputs.print_json({"file": file, **error.document()})


def _read_standard_input() -> bytes:
    if sys.stdin is None:  # closed, as by `<&-`
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return sys.stdin.buffer.read()
