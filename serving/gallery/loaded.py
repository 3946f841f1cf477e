"""The galleries of the loaded bundles, kept up to date with the store."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from speakerlens.serving.bundle import Bundle
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.exemplar import Exemplar
from speakerlens.serving.gallery.matrix import Gallery
from speakerlens.serving.gallery.store import SpeakerStore

log = logging.getLogger(__name__)

# Changes by other servers are seen after this time at the latest.
LOOK_SECONDS: Final = 0.5
# More changed speakers than this are read faster with all others.
MOST_CHANGED: Final = 1000


class Galleries:
    """One gallery in memory for each bundle that is searched. Event-loop only.

    Each is read at its first use. Before later uses the store's revision is looked up, at most every LOOK_SECONDS, and
    only the speakers that changed are read.

    Args:
        store: the enrolled speakers.
        loaded: returns the digests of the loaded bundles; galleries of others are dropped.
    """

    def __init__(self, store: AsyncSpeakerStore, loaded: Callable[[], Iterable[str]]) -> None:
        self._store = store
        self._loaded = loaded
        self._galleries: dict[str, tuple[Gallery, int]] = {}
        self._looked: dict[str, float] = {}
        self._expired = 0
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def expire(self) -> None:
        """Look up the revision before the next use, as this server has changed the store."""
        self._looked.clear()
        self._expired += 1

    async def of(self, bundle: Bundle) -> Gallery:
        """Return the gallery of a bundle, at most LOOK_SECONDS old.

        Raises:
            FailedPreconditionError: the server has no store.
            UnavailableError: the store cannot be read.
        """
        self._store.check()
        async with self._locks[bundle.digest]:
            looked = self._looked.get(bundle.digest)
            if looked is None or time.monotonic() - looked >= LOOK_SECONDS:
                now, expired = time.monotonic(), self._expired
                known = self._galleries.get(bundle.digest)
                self._galleries[bundle.digest] = await self._store.run(lambda store: _refreshed(store, bundle, known))
                if expired == self._expired:  # else what was read may lack this server's change
                    self._looked[bundle.digest] = now
                self._drop({bundle.digest, *self._loaded()})
            return self._galleries[bundle.digest][0]

    def _drop(self, used: set[str]) -> None:
        """Drop the galleries of other bundles."""
        for digest in set(self._galleries) - used:
            del self._galleries[digest]
            self._looked.pop(digest, None)


def _refreshed(store: SpeakerStore, bundle: Bundle, known: tuple[Gallery, int] | None) -> tuple[Gallery, int]:
    """Return the gallery of a bundle as the store has it now, and a revision that it is not older than."""
    revision = store.revision()  # first: what changes while the exemplars are read is read again
    if known is not None and known[1] == revision:
        return known
    changed = None if known is None else store.changed_since(known[1])
    if known is None or changed is None or len(changed) > MOST_CHANGED:
        started = time.monotonic()
        gallery = Gallery.of(store.bundle_exemplars(bundle.digest), bundle.embedding_size)
        log.info(
            "%s: %d enrolled speakers, %d exemplars, %.1f MB, read in %.2f s",
            *(bundle.name, len(gallery), len(gallery.embeddings), gallery.embeddings.nbytes / 1e6),
            time.monotonic() - started,
        )
        return gallery, revision
    return known[0].updated(changed, _changed_exemplars(store, bundle, changed)), revision


def _changed_exemplars(store: SpeakerStore, bundle: Bundle, changed: Iterable[str]) -> list[Exemplar]:
    return [each for name in changed for each in store.find(name) if each.bundle == bundle.digest]
