"""Estimates of how long work takes, learned from measurements and robust to outliers."""

# Weight of older batches for each newer one.
BATCH_MEMORY = 0.7
# The same where a measurement is far below the estimate: what made it high is over.
DROP_MEMORY = 0.3
# A measurement counts as at most this multiple of the estimate, or as OUTLIER_SECONDS if that is more, so that one
# pause of the process cannot refuse callers for long; a device that really became slower is followed in a few batches.
# Below the estimate by the same factor, it counts as far below.
OUTLIER_RATIO = 4.0
OUTLIER_SECONDS = 0.01
# A refusal measures nothing, so each lowers the estimate: one slow batch must not shut an idle queue for good.
REFUSAL_DECAY = 0.9
# Cautious estimates add this many mean deviations, as TCP's retransmission timer does (RFC 6298 adds four).
CAUTION = 2.0
# Weight of older jobs' overruns for each newer one; there is one for each job of a batch.
OVERRUN_MEMORY = 0.9
# Bound of the overrun, and the time in which half of it is forgotten.
MAX_OVERRUN = 3.0
OVERRUN_HALF_LIFE_SECONDS = 1.0
# Shorter expectations are missed by any ratio for reasons that have nothing to do with the queue.
MIN_EXPECTED_SECONDS = 0.02


class LatencyEstimator:
    """Exponentially weighted mean of seconds per unit of cost, with a mean deviation.

    The first measurement alone is not used, as it may include a pause; of the first two the faster counts.
    """

    def __init__(self) -> None:
        # Sums rather than a mean of rates, because a short batch is mostly overhead.
        self._seconds, self._cost = 0.0, 0.0
        self._deviation = 0.0
        self._first: tuple[float, float] | None = None

    def record(self, cost: float, seconds: float) -> None:
        """Record that work of this cost, which is positive, took `seconds`."""
        if self._first is None:
            self._first = cost, seconds
        elif not self._cost:
            self._cost, self._seconds = min(self._first, (cost, seconds), key=lambda each: each[1] / each[0])
        else:
            self._update(cost, seconds)

    def _update(self, cost: float, seconds: float) -> None:
        estimate = self.seconds(cost)
        seconds = min(seconds, max(OUTLIER_RATIO * estimate, OUTLIER_SECONDS))
        if seconds < estimate / OUTLIER_RATIO:
            # A fall of the estimate is no reason for caution.
            memory, deviation = DROP_MEMORY, 0.0
        else:
            memory, deviation = BATCH_MEMORY, abs(seconds - estimate) / cost
        self._deviation = memory * self._deviation + (1 - memory) * deviation
        self._seconds = memory * self._seconds + seconds
        self._cost = memory * self._cost + cost

    def seconds(self, cost: float) -> float:
        """Return the expected seconds of work of this cost; 0 before the second measurement."""
        return cost * self._seconds / self._cost if self._cost else 0.0

    def cautious_seconds(self, cost: float) -> float:
        """Return the expected seconds plus CAUTION mean deviations."""
        return self.seconds(cost) + CAUTION * self._deviation * cost

    def decay(self) -> None:
        """Lower the estimate after a refusal that was due to it while nothing ran that could correct it."""
        self._seconds *= REFUSAL_DECAY
        self._deviation *= REFUSAL_DECAY


class OverrunEstimator:
    """How many times longer than expected jobs take to be answered: from 1 to MAX_OVERRUN, halving towards 1 over time.

    Times are in seconds on the event loop's clock.
    """

    def __init__(self) -> None:
        self._excess, self._deviation = 0.0, 0.0
        self._updated = 0.0

    def record(self, expected: float, seconds: float, now: float) -> None:
        """Record at `now` that a job expected to take `expected` seconds took `seconds`, or was given up after them."""
        self._fade(now)
        ratio = min(max(seconds / max(expected, MIN_EXPECTED_SECONDS), 1.0), MAX_OVERRUN)
        deviation = abs(ratio - 1 - self._excess)
        self._deviation = OVERRUN_MEMORY * self._deviation + (1 - OVERRUN_MEMORY) * deviation
        self._excess = OVERRUN_MEMORY * self._excess + (1 - OVERRUN_MEMORY) * (ratio - 1)

    def factor(self, now: float) -> float:
        """Return the factor, CAUTION deviations included, by which to multiply an expectation at `now`."""
        self._fade(now)
        return min(1 + self._excess + CAUTION * self._deviation, MAX_OVERRUN)

    def _fade(self, now: float) -> None:
        kept = 0.5 ** ((now - self._updated) / OVERRUN_HALF_LIFE_SECONDS)
        self._excess, self._deviation, self._updated = kept * self._excess, kept * self._deviation, now
