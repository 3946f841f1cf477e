"""Errors that a request or the operator can cause, one class per gRPC status.

Raise the class whose status fits; `serving.rpc.interceptor` alone turns it into a status, counts it and logs it. Any
other exception becomes INTERNAL, with its trace in the log.
"""

import re
from collections.abc import Collection
from enum import StrEnum
from itertools import islice
from typing import ClassVar

QUOTED_CHARACTERS = 64
# Control characters around what `quoted` returns, which escapes those of the caller; no message keeps them.
QUOTE_START, QUOTE_END = "\x02", "\x03"
QUOTED = re.compile(f"{QUOTE_START}[^{QUOTE_END}]*{QUOTE_END}")
LISTED_NAMES = 20


class Reason(StrEnum):
    """Why a request was refused: the values of the label `reason` of the rejection counter."""

    MALFORMED = "malformed"
    ARGUMENT = "argument"
    NOT_AUDIO = "not_audio"
    EMPTY = "empty"
    NOT_FINITE = "not_finite"
    OUT_OF_SCALE = "out_of_scale"
    SILENT = "silent"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    SAMPLE_RATE = "sample_rate"
    CHANNELS = "channels"
    UNKNOWN_VARIANT = "unknown_variant"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_SPEAKER = "unknown_speaker"
    QUEUE_FULL = "queue_full"
    IN_FLIGHT = "in_flight"
    MEMORY = "memory"
    HELD = "held"
    DEADLINE = "deadline"
    IDLE = "idle"
    ARRIVAL = "arrival"
    UNREAD = "unread"
    NOT_SERVING = "not_serving"
    ENROLMENT = "enrolment"
    NO_STORE = "no_store"
    STORE = "store"
    OTHER_BUNDLE = "other_bundle"
    NO_CLASSIFIER = "no_classifier"
    ANSWER_SIZE = "answer_size"
    REQUEST_SIZE = "request_size"
    UNAUTHENTICATED = "unauthenticated"


class StartupError(Exception):
    """The server cannot start or continue: one sentence that says what the operator can correct."""


class RequestError(Exception):
    """Base of the errors that end a request with a gRPC status.

    Args:
        reason: the bounded cause, for the metrics.
        message: one sentence for the caller: which field, what is wrong, what would be right.
        retry_after_s: seconds after which a retry is likely to succeed, None where that is unknown.

    Attributes:
        logged: the message without what the caller wrote, for the log.
    """

    code: ClassVar[str]

    def __init__(self, reason: Reason, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message.replace(QUOTE_START, "").replace(QUOTE_END, ""))
        self.logged = QUOTED.sub("…", message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class InvalidArgumentError(RequestError):
    """INVALID_ARGUMENT: raise when a field of the request is wrong; the message begins with the field's name."""

    code = "INVALID_ARGUMENT"


class NotFoundError(RequestError):
    """NOT_FOUND: raise for an unknown variant, version or speaker; the message lists the known ones."""

    code = "NOT_FOUND"


class FailedPreconditionError(RequestError):
    """FAILED_PRECONDITION: raise when something must be done before; the message says what."""

    code = "FAILED_PRECONDITION"


class ResourceExhaustedError(RequestError):
    """RESOURCE_EXHAUSTED: raise when a limit of the server is reached and a later retry may succeed."""

    code = "RESOURCE_EXHAUSTED"


class UnauthenticatedError(RequestError):
    """UNAUTHENTICATED: raise for a missing or unknown token; the message is the same for both."""

    code = "UNAUTHENTICATED"


class DeadlineError(RequestError):
    """DEADLINE_EXCEEDED: raise when the caller's deadline has passed, or would pass before the answer is ready."""

    code = "DEADLINE_EXCEEDED"


class UnavailableError(RequestError):
    """UNAVAILABLE: raise when the server starts, drains or recovers; another replica may answer."""

    code = "UNAVAILABLE"


def quoted(text: str) -> str:
    """Return a client's text as a quoted, escaped string of bounded length, for the message of a `RequestError`.

    The log has "…" in its place: a name may be a person's.
    """
    shown = repr(text if len(text) <= QUOTED_CHARACTERS else text[:QUOTED_CHARACTERS] + "…")
    return f"{QUOTE_START}{shown}{QUOTE_END}"


def listed(names: Collection[object]) -> str:
    """Return a list of bounded length, such as `a, b, c and 17 more`; clients may send millions of names."""
    shown = ", ".join(str(name)[:QUOTED_CHARACTERS] for name in islice(names, LISTED_NAMES))
    return shown if len(names) <= LISTED_NAMES else f"{shown} and {len(names) - LISTED_NAMES} more"
