"""Errors of the command line: one line on stderr, and an exit code for each kind of error."""

import re
import sys
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
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
    """Exit codes; with several files, that of the first error."""

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
  0  success
  2  wrong usage, or a missing optional package
  3  a file could not be read, or the server refused it
  4  unknown variant, version or speaker
  5  no server answers, or it is not ready
  6  the server is overloaded, or did not answer in time
  7  the server failed, or a result could not be written
  8  the server requires a valid token
  9  the server stores no speakers, or enrolled this one with another model"""

# Fields of a request, as the command line calls them; an empty name is the audio file itself.
_FIELDS = {
    "audio": "",
    "other": "",
    "samples": "",
    "speaker": "",
    "speakers": "--speakers",
    "top_k": "--top-k",
    "models": "--variants",
    "model": "--variant",
    "explain.stages": "--stages",
    "explain.target_speaker": "--target",
    "enrolled_speaker": "--enrolled",
}
# What the server says about its calls, in the words of the command line.
_CALLS = {
    "use Search, or Verify for two voices": "use `speakerlens search`, or `speakerlens verify` for two recordings",
}
# At the start of a message, or of the next utterance's problems in it.
_PATH = re.compile(r"(?:^|(?<=\. )(?=utterances\[))([a-z_]+)(?:\[(\d+)\])?((?:\.[a-z_0-9]+)*): ")


class CommandError(Exception):
    """An error of a command, or of one of its files.

    Args:
        exit_code: of the process.
        code: the gRPC status, USAGE, UNREADABLE or UNWRITABLE, for the JSON.
        message: one sentence.
        detail: the server's message, for the JSON; None: the same as `message`.
        stops: whether the next file would have the same error, so that it is not tried.
    """

    def __init__(
        self, exit_code: Exit, code: str, message: str, *, detail: str | None = None, stops: bool = False
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code
        self.detail = message if detail is None else detail
        self.stops = stops

    def of_one_file(self) -> "CommandError":
        """Return the same error, as one that does not stop the other files."""
        return CommandError(self.exit_code, self.code, str(self), detail=self.detail)

    def document(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"error": {"code": self.code, "message": self.detail}}


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


def call_error(error: ClientError, names: Mapping[str, str] = MappingProxyType({})) -> CommandError:
    """Return the command's error for a failed call.

    Args:
        error: of the call.
        names: what the command calls fields of the request, such as `utterances[0]`, beside its usual flags.
    """
    exit_code, stops = _CALL_EXITS.get(type(error), (Exit.FAILURE, False))
    detail = str(error)
    return CommandError(
        exit_code, error.status.name, _in_terms_of_the_command(detail, names), detail=detail, stops=stops
    )


def complain(sentence: str) -> None:
    """Print one line on stderr, whatever the sentence contains."""
    sys.stderr.write(f"speakerlens: {' '.join(sentence.split())}\n")


def _in_terms_of_the_command(message: str, names: Mapping[str, str]) -> str:
    """Replace the paths of a request's fields, which a server's message is about, by their flags or files."""

    def named(match: re.Match[str]) -> str:
        name, index, rest = match.groups()
        known = names.get(name if index is None else f"{name}[{index}]", _FIELDS.get(name + rest, _FIELDS.get(name)))
        if known is None:
            return match[0]
        return f"{known}: " if known else ""

    text = _PATH.sub(named, message)
    for said, meant in _CALLS.items():
        text = text.replace(said, meant)
    return text
