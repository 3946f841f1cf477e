"""How long something takes, learned from what it took before."""

# What an older batch still counts, for each newer one.
BATCH_MEMORY = 0.7
# The same of an older expectation; there is one for each job of a batch.
EXPECTATION_MEMORY = 0.9
# A refusal measures nothing, so each lowers the estimate: one slow batch must not shut an idle queue for ever.
REFUSAL_RELIEF = 0.9
# A promise counts on batches as slow as this many mean deviations above the mean, as retransmission timers do.
CAUTION = 2.0


class LatencyEstimator:
    """Seconds for each unit of cost, as a mean of what was seen so far in which the older counts less.

    Args:
        memory: what is older still counts, for each newer one.
    """

    def __init__(self, memory: float = BATCH_MEMORY) -> None:
        self._memory = memory
        # Sums rather than a mean of rates, because a short batch is mostly overhead.
        self._seconds, self._cost = 0.0, 0.0
        self._deviation = 0.0

    def ran(self, cost: float, seconds: float) -> None:
        """What costs this took so long."""
        if self._cost:
            deviation = abs(seconds - self.seconds(cost)) / cost
            self._deviation = self._memory * self._deviation + (1 - self._memory) * deviation
        self._seconds = self._memory * self._seconds + seconds
        self._cost = self._memory * self._cost + cost

    def seconds(self, cost: float) -> float:
        """How long so much is likely to take; 0 where nothing is known yet."""
        return cost * self._seconds / self._cost if self._cost else 0.0

    def cautious_seconds(self, cost: float) -> float:
        """How long so much takes if it goes badly, by what was seen."""
        return self.seconds(cost) + CAUTION * self._deviation * cost

    def decay(self) -> None:
        """Somebody was refused by this estimate while nothing was computed that could correct it."""
        self._seconds *= REFUSAL_RELIEF
        self._deviation *= REFUSAL_RELIEF
