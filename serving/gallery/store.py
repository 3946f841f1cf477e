"""The interface of the stores of enrolled speakers.

Every change is one transaction, on the disk before the call returns. An embedding is stored with the digest of the
bundle that made it, as embeddings of two networks cannot be compared.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from speakerlens.serving.errors import StartupError
from speakerlens.serving.gallery.exemplar import Enrolment, Exemplar, KeptRecording
from speakerlens.serving.gallery.sqlite import SqliteStore

URL_PREFIXES = ("postgresql://", "postgres://")


class SpeakerStore(Protocol):
    """Enrolled speakers.

    All methods but `close` raise `UnavailableError` where the store cannot be read or written now; those that change
    it raise `ResourceExhaustedError` where its disk is full. Nothing has changed then.

    Attributes:
        kind: `sqlite` or `postgres`.
        threads: that may use it at a time.
    """

    kind: str
    threads: int

    def enroll(self, exemplars: Sequence[Exemplar], recordings: Sequence[KeptRecording] = (), *, replace: bool) -> None:
        """Add exemplars, atomically; `replace` removes what is stored of their speakers, for every bundle."""
        ...

    def attach(self, exemplars: Sequence[Exemplar]) -> int:
        """Add exemplars of kept recordings, and return how many.

        Those whose recording was removed, or has an exemplar of the bundle already, are left out.
        """
        ...

    def remove(self, speaker: str) -> bool:
        """Remove a speaker; return whether it was enrolled."""
        ...

    def forget(self, before: str) -> int:
        """Remove exemplars and recordings enrolled before a time in UTC, ISO 8601; return how many exemplars."""
        ...

    def find(self, speaker: str) -> list[Exemplar]:
        """Return the exemplars of a speaker, by variant, version and time."""
        ...

    def recordings(self, speaker: str) -> list[KeptRecording]:
        """Return the kept recordings of a speaker, by time."""
        ...

    def page(self, after: str, most: int) -> list[Enrolment]:
        """Return the enrolments of up to `most` speakers whose names come after `after`, by name."""
        ...

    def without(self, bundles: Sequence[str], after: str, most: int) -> list[tuple[str, bool]]:
        """Return up to `most` speakers after `after` without exemplars of any of the bundles, by name.

        The second value is whether recordings of the speaker are kept.
        """
        ...

    def revision(self) -> int:
        """Return a number that grows with each change, by any process."""
        ...

    def bundle_exemplars(self, bundle: str) -> Iterator[Exemplar]:
        """Yield all exemplars of a bundle, by speaker, in the order of code points."""
        ...

    def changed_since(self, revision: int) -> set[str] | None:
        """Return the speakers that changed, or were removed, after a revision; None: read everything again."""
        ...

    def close(self) -> None:
        """Close the store."""
        ...


def open_store(address: str) -> SpeakerStore:
    """Return the store at an address.

    Args:
        address: the path of a SQLite file, created if missing, or the URL of a database, postgresql://….

    Raises:
        StartupError: it cannot be used; says why.
    """
    if not address.startswith(URL_PREFIXES):
        return SqliteStore(Path(address))
    try:
        from speakerlens.serving.gallery.postgres import PostgresStore  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise StartupError(
            f"--speakers: a database needs the extra postgres (pip install 'speakerlens[postgres]'): {error}"
        ) from error
    return PostgresStore(address)
