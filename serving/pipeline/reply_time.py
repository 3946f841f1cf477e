"""How long an answer takes from the device to its caller, so that it is computed early enough to be there in time."""

import time

from speakerlens.serving.engine.latency import LatencyEstimator

# From the device's last answer to the whole, and from there to the caller, who began to count before the server did.
WAYS = 2
# Of the time that is left, the most that is set aside for it.
MOST_OF_IT = 0.2


class ReplyTimeEstimator:
    """Learned from the answers so far; must be used on the event loop."""

    def __init__(self) -> None:
        self._pace = LatencyEstimator()

    def gone(self, seconds: float) -> None:
        """An answer was ready so long after the device was."""
        self._pace.record(1, seconds)

    def compute_deadline(self, deadline: float | None) -> float | None:
        """When the device must be done with what should be answered by `deadline`, on the clock of `time.monotonic`."""
        if deadline is None:
            return None
        left = max(0.0, deadline - time.monotonic())
        return deadline - min(WAYS * self._pace.cautious_seconds(1), MOST_OF_IT * left)
