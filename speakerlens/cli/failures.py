"""How the command line fails: one sentence on stderr, and an exit code that says what kind of thing went wrong."""

import sys
from enum import IntEnum
from typing import Any

from speakerlens.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    NotPossibleError,
    OverloadedError,
    ServerUnavailableError,
    UnauthenticatedError,
)


class Exit(IntEnum):
    """Exit codes; with several files, that of the first failure."""

    OK = 0
    USAGE = 2
    INPUT = 3
    NOT_FOUND = 4
    UNAVAILABLE = 5
    BUSY = 6
    FAILURE = 7
    UNAUTHENTICATED = 8
    NOT_POSSIBLE = 9
    INTERRUPTED = 130


EXIT_CODES_HELP = """exit codes:
  0  every file was answered
  2  wrong usage, or a missing optional package
  3  a file could not be read, or the server refused it
  4  no such variant, version or speaker
  5  no server answers, or it is not ready
  6  the server is overloaded, or did not answer in time
  7  the server failed, or a result could not be written
  8  the server wants a token, or another one
  9  the server keeps no speakers, or has this one from another model"""


class CommandError(Exception):
    """What stops a command, or one of its files.

    Args:
        exit_code: what the process ends with.
        code: the gRPC status, UNREADABLE or UNWRITABLE, for programs that read the JSON.
        message: the sentence.
        stops: whether the next file would fail in the same way, so that it is not tried.
    """

    def __init__(self, exit_code: Exit, code: str, message: str, *, stops: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code
        self.stops = stops

    def of_one(self) -> "CommandError":
        """The same as one file's own, which does not stop the others."""
        return CommandError(self.exit_code, self.code, str(self))

    def document(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {"error": {"code": self.code, "message": str(self)}}


def usage_error(message: str) -> CommandError:
    """Return the error of a command that cannot start."""
    return CommandError(Exit.USAGE, "USAGE", message, stops=True)


_CALL_EXITS: dict[type[ClientError], tuple[Exit, bool]] = {
    InvalidRequestError: (Exit.INPUT, False),
    NotFoundError: (Exit.NOT_FOUND, True),
    NotPossibleError: (Exit.NOT_POSSIBLE, True),
    UnauthenticatedError: (Exit.UNAUTHENTICATED, True),
    ServerUnavailableError: (Exit.UNAVAILABLE, True),
    OverloadedError: (Exit.BUSY, False),
    DeadlineExceededError: (Exit.BUSY, False),
}


def call_error(error: ClientError) -> CommandError:
    """Return what a failed call means for the command."""
    exit_code, stops = _CALL_EXITS.get(type(error), (Exit.FAILURE, False))
    return CommandError(exit_code, error.status.name, str(error), stops=stops)


def complain(sentence: str) -> None:
    """Print one line on stderr, whatever the sentence holds."""
    sys.stderr.write(f"speakerlens: {' '.join(sentence.split())}\n")
