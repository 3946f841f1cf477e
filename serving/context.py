"""What is known of the call in work, for every part that handles it: one context variable, set by the rpc layer.

Outside a call (probes, background work, a unit test) `current_context` has no value.
"""

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from speakerlens.serving.metrics import NO_VARIANT

ID_HEADER = "x-request-id"
RETRY_HEADER = "retry-after-ms"


def _ignore(_value: object) -> None:
    pass


@dataclass
class CallContext:
    """One call, from its arrival to its status.

    Attributes:
        method: name of the RPC, without its service.
        id: request id, for the log, exemplars and the trailing metadata.
        variant: label of the models asked; the service sets it once it knows them.
        caller: name of the bearer token, None without one.
        started: arrival, on the clock of `time.monotonic`.
        status: name of the gRPC status that the call ends with.
        detail: message of that status.
        retry_after_s: seconds after which a retry may succeed, None where that is unknown.
        reserve_answer: reserves bytes of an answer under construction; raises ResourceExhaustedError where they do not
            fit into the memory limit.
        report_phases: receives the seconds of each phase that just ended, in order.
    """

    method: str
    id: str
    variant: str = NO_VARIANT
    caller: str | None = None
    started: float = field(default_factory=time.monotonic)
    status: str = "OK"
    detail: str = ""
    retry_after_s: float | None = None
    reserve_answer: Callable[[int], None] = _ignore
    report_phases: Callable[[Mapping[str, float]], None] = _ignore

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata that goes out with the status: the request id and, if known, when to retry."""
        if self.retry_after_s is None:
            return ((ID_HEADER, self.id),)
        return (ID_HEADER, self.id), (RETRY_HEADER, str(max(1, round(self.retry_after_s * 1000))))


current_context: ContextVar[CallContext] = ContextVar("current_context")
