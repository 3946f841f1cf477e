"""What can go wrong, and what the caller is told.

Every error that a request can cause is a `RequestError`: it carries the name of its gRPC status and a `Reason`, which
is also the bounded label of the rejection counter. `serving.rpc.interceptor` alone turns them into statuses.
"""

from collections.abc import Collection
from enum import StrEnum
from itertools import islice
from typing import ClassVar

QUOTED_CHARACTERS = 64
LISTED_NAMES = 20


class Reason(StrEnum):
    """Why a request was refused; the values of the label `reason`."""

    MALFORMED = "malformed"
    ARGUMENT = "argument"
    NOT_AUDIO = "not_audio"
    EMPTY = "empty"
    NOT_FINITE = "not_finite"
    OUT_OF_SCALE = "out_of_scale"
    SILENT = "silent"
    NO_SPEECH = "no_speech"
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
    NO_STORE = "no_store"
    STORE = "store"
    OTHER_BUNDLE = "other_bundle"
    ANSWER_SIZE = "answer_size"
    UNAUTHENTICATED = "unauthenticated"
    UNSUPPORTED = "unsupported"


class StartupError(Exception):
    """The server cannot start or go on: one sentence for the operator, who can mend it."""


class RequestError(Exception):
    """A request that is answered with an error status.

    Args:
        reason: the bounded cause, for the metrics.
        message: one sentence for the caller: which field, what is wrong, what would be right.
        retry_after_s: seconds after which trying again is likely to work, where the server can tell.
    """

    code: ClassVar[str]

    def __init__(self, reason: Reason, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class InvalidArgumentError(RequestError):
    """A field of the request is wrong; the message begins with the field's name."""

    code = "INVALID_ARGUMENT"


class NotFoundError(RequestError):
    """The request names a variant, version or speaker that is not there; the message says what there is."""

    code = "NOT_FOUND"


class FailedPreconditionError(RequestError):
    """The server is not set up for this; the message says what would have to be done first."""

    code = "FAILED_PRECONDITION"


class ResourceExhaustedError(RequestError):
    """The server has more work waiting than it accepts; trying again later is right."""

    code = "RESOURCE_EXHAUSTED"


class UnauthenticatedError(RequestError):
    """The call brings no token that is valid here; it is not said whether the token was ever one."""

    code = "UNAUTHENTICATED"


class DeadlineError(RequestError):
    """The caller's deadline passed, or would have passed before the answer was there."""

    code = "DEADLINE_EXCEEDED"


class UnimplementedError(RequestError):
    """A method of a protocol that this server speaks in part; the message says what there is instead."""

    code = "UNIMPLEMENTED"


class UnavailableError(RequestError):
    """The server is starting or draining; another replica may answer."""

    code = "UNAVAILABLE"


def quoted(text: str) -> str:
    """A client's string, fit for a message or a log line: escaped and of bounded length."""
    return repr(text if len(text) <= QUOTED_CHARACTERS else text[:QUOTED_CHARACTERS] + "…")


def listed(names: Collection[object]) -> str:
    """What there is, in a bounded list: `a, b, c and 17 more`; there may be millions, if a client sent them."""
    shown = ", ".join(str(name)[:QUOTED_CHARACTERS] for name in islice(names, LISTED_NAMES))
    return shown if len(names) <= LISTED_NAMES else f"{shown} and {len(names) - LISTED_NAMES} more"
