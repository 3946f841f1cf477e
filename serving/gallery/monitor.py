"""Watches the store: whether it can be used, who must enrol again, and what is old enough to be forgotten."""

import asyncio
import datetime
import logging
import time
from collections.abc import Callable
from typing import Final

from speakerlens.serving.errors import RequestError
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.store import SpeakerStore
from speakerlens.serving.metrics.store import AUDIO, Store

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
# Counting reads every row, so that it is not done at every change, and takes at most this share of the time.
COUNT_SECONDS: Final = 10.0
COUNT_SHARE: Final = 0.02
FORGET_SECONDS: Final = 600.0
MOST: Final = 2**31


class StoreMonitor:
    """Watches a store until it is cancelled.

    Args:
        speakers: the store.
        metrics: receive what is found.
        report: called with whether the store can be used, at every change.
        newest: returns the digest of each variant's newest bundle.
        forget_after: days after which an enrolment is removed; 0: never.
    """

    def __init__(
        self,
        speakers: AsyncSpeakerStore,
        metrics: Store,
        report: Callable[[bool], None],
        newest: Callable[[], list[str]],
        forget_after: float,
    ) -> None:
        self._speakers = speakers
        self._metrics = metrics
        self._report = report
        self._newest = newest
        self._forget_after = forget_after
        self._up: bool | None = None
        self._counted: tuple[int, list[str]] | None = None
        self._next_count = self._next_forget = 0.0

    async def run(self) -> None:
        """Watch; errors of the store are reported and do not end it."""
        if not self._speakers.configured:
            return
        while True:
            try:
                await self._look()
            except RequestError:
                self._note(False)
            except Exception:
                log.exception("the speakers' store could not be watched")
                self._note(False)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        revision = await self._speakers.run(lambda store: store.revision())
        self._note(True)
        now = time.monotonic()
        if self._forget_after and now >= self._next_forget:
            self._next_forget = now + FORGET_SECONDS
            await self._forget()
        newest = self._newest()
        if (revision, newest) != self._counted and now >= self._next_count and newest:
            counts = await self._speakers.run(lambda store: _outdated(store, newest))
            taken = time.monotonic() - now
            self._next_count = now + max(COUNT_SECONDS, taken / COUNT_SHARE)
            for audio, count in zip(AUDIO, counts, strict=True):
                self._metrics.outdated.labels(audio).set(count)
            if self._counted is None and counts[1]:
                log.warning("%d enrolled speakers must enrol again: no loaded bundle made their exemplars", counts[1])
            self._counted = revision, newest

    async def _forget(self) -> None:
        before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=self._forget_after)
        removed = await self._speakers.run(lambda store: store.forget(before.isoformat(timespec="seconds")))
        if removed:
            self._metrics.forgotten.inc(removed)
            log.info("%d exemplars older than %g days were removed", removed, self._forget_after)

    def _note(self, up: bool) -> None:
        self._metrics.up.labels(self._speakers.kind).set(up)
        if up != self._up:
            self._up = up
            self._report(up)


def _outdated(store: SpeakerStore, bundles: list[str]) -> tuple[int, int]:
    """Return the speakers without exemplars of the bundles: those whose audio is kept, and the others."""
    found = store.without(bundles, "", MOST)
    kept = sum(recorded for _, recorded in found)
    return kept, len(found) - kept
