"""Work that nobody waits for: a share of the answers is looked into on the models, while the device has nothing to do.

One piece at a time, at the lowest priority, computed only on an idle device. What does not get its turn soon is dropped
and counted, as is what comes while enough waits. What waits keeps its audio and no model: what is no longer served by
then is not asked.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.sound import Sound
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import Prediction
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.errors import DeadlineError, Reason, RequestError, ResourceExhaustedError, UnavailableError
from speakerlens.serving.metrics import Robustness
from speakerlens.serving.pipeline.concurrency import FULL

log = logging.getLogger(__name__)

MOST_WAITING = 16
# An answer older than this says nothing of now; and what waits for longer waits for a device that is never idle.
PATIENCE_SECONDS = 10.0
LOOK_SECONDS = 0.005

Work = Literal["saliency", "shadow"]


@dataclass(frozen=True)
class Sample:
    """One window of an answered request.

    Attributes:
        audio: in which somebody speaks, float32 [n] at 16 kHz.
        said: by the bundles that were asked, of this window.
        sound: how it sounds.
        request_id: of the call.
    """

    audio: NDArray[np.float32]
    said: tuple[tuple[Bundle, Prediction], ...]
    sound: "Future[Sound | None] | None"
    request_id: str | None


class Sampler:
    """Decides which answers are looked into.

    Args:
        share: of all.
        chance: draws from 0 to 1; regular choices would always meet the same caller of several that take turns.
    """

    def __init__(self, share: float, chance: Callable[[], float] = random.random) -> None:
        self.share = share
        self._chance = chance

    def sample(self) -> bool:
        """Whether the next is."""
        return self.share > 0 and self._chance() < self.share


class Dropped(Exception):  # noqa: N818
    """The work did not come to its turn."""


class IdleSlot:
    """What a piece of work may ask for: the device while it is idle, until the work's time has passed."""

    def __init__(self, device: Scheduler) -> None:
        self._device = device
        self.deadline = time.monotonic() + PATIENCE_SECONDS

    async def idle(self) -> None:
        """Waits until nothing runs or waits on the device.

        Raises:
            Dropped: it never did.
        """
        while not self._device.idle:
            if time.monotonic() >= self.deadline:
                raise Dropped
            await asyncio.sleep(LOOK_SECONDS)


SampleWork = Callable[[Sample, IdleSlot], Awaitable[None]]


class Background:
    """The queue of such work, and its one worker; lives on the event loop.

    Args:
        device: that must be idle.
        metrics: counts what became of each piece.
    """

    def __init__(self, device: Scheduler, metrics: Robustness) -> None:
        self._device = device
        self._metrics = metrics
        self._waiting: deque[tuple[Work, SampleWork, Sample, IdleSlot]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def offer(self, work: Work, doing: SampleWork, sample: Sample) -> None:
        """Puts a piece of work last, or drops it."""
        if len(self._waiting) >= MOST_WAITING:
            self._count(work, "dropped")
            return
        self._waiting.append((work, doing, sample, IdleSlot(self._device)))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Drops what waits or is in work."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})
        for work, *_ in self._waiting:
            self._count(work, "dropped")
        self._waiting.clear()

    async def _work(self) -> None:
        """Until nothing waits."""
        while self._waiting:
            work, doing, sample, slot = self._waiting[0]
            outcome = "dropped"
            try:
                await doing(sample, slot)
                outcome = "done"
            except (Dropped, DeadlineError, UnavailableError):
                pass
            except Exception as error:
                if not (isinstance(error, ResourceExhaustedError) and error.reason in (*FULL, Reason.DEADLINE)):
                    outcome = "failed"
                    trace = None if isinstance(error, RequestError) else error
                    log.warning("a %s sample failed: %s", work, error, exc_info=trace)
            finally:
                # Here, and not before: what is in work counts among those that wait.
                self._waiting.popleft()
                self._count(work, outcome)

    def _count(self, work: Work, outcome: str) -> None:
        self._metrics.background.labels(work, outcome).inc()
