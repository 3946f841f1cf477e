"""Enrolled speakers in one SQLite file; for one thread at a time."""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from speakerlens.serving.gallery.exemplar import (
    COLUMNS,
    Enrolment,
    Exemplar,
    KeptRecording,
    enrolments_of,
    exemplar_of,
    row_of,
)
from speakerlens.serving.gallery.sqlite_file import SpeakerFile, refusal

# A revision is that of the file, and above these bits how often the file was replaced.
REVISION_BITS: Final = 40
# Removals that are remembered: others that fall behind read the gallery again.
MAX_REMOVALS: Final = 10_000

ADD: Final = f"INSERT INTO exemplars ({COLUMNS}, changed) VALUES ({'?, ' * 13}?)"  # noqa: S608 (ours)


class SqliteStore:
    """A store in a file; see `SpeakerStore` for what its methods do.

    Args:
        path: the file, created if missing.

    Raises:
        StartupError: the file is not a speaker store, has another schema version, is damaged, or is not writable.
    """

    kind = "sqlite"
    threads = 1

    def __init__(self, path: Path) -> None:
        self._file = SpeakerFile(path)
        # Removals by this process: the file keeps no names of removed speakers.
        self._removed: dict[int, set[str]] = {}

    def enroll(self, exemplars: Sequence[Exemplar], recordings: Sequence[KeptRecording] = (), *, replace: bool) -> None:
        """Add exemplars."""
        with self._file.change() as connection:
            revision = _advance(connection)
            if replace:
                names = [(name,) for name in {each.speaker for each in exemplars}]
                for table in ("exemplars", "recordings"):
                    connection.executemany(f"DELETE FROM {table} WHERE speaker = ?", names)  # noqa: S608
            connection.executemany(
                "INSERT INTO recordings VALUES (?, ?, ?, ?)",
                [(each.id, each.speaker, each.enrolled, each.audio) for each in recordings],
            )
            connection.executemany(ADD, [(*row_of(each), revision) for each in exemplars])

    def attach(self, exemplars: Sequence[Exemplar]) -> int:
        """Add exemplars of recordings that are still kept."""
        added = 0
        with self._file.change() as connection:
            revision = _advance(connection)
            for each in exemplars:
                kept = connection.execute("SELECT 1 FROM recordings WHERE id = ?", (each.recording,)).fetchone()
                if kept is not None:
                    statement = ADD.replace("INSERT", "INSERT OR IGNORE")
                    added += connection.execute(statement, (*row_of(each), revision)).rowcount
        return added

    def remove(self, speaker: str) -> bool:
        """Remove a speaker."""
        with self._file.change() as connection:
            revision = _advance(connection)
            removed = connection.execute("DELETE FROM exemplars WHERE speaker = ?", (speaker,)).rowcount > 0
            connection.execute("DELETE FROM recordings WHERE speaker = ?", (speaker,))
            if removed:
                _note_removal(connection, revision)
        if removed:
            self._remember_removed(revision, {speaker})
        return removed

    def forget(self, before: str) -> int:
        """Remove old exemplars and recordings."""
        with self._file.change() as connection:
            revision = _advance(connection)
            old = connection.execute("SELECT DISTINCT speaker FROM exemplars WHERE enrolled < ?", (before,)).fetchall()
            removed = connection.execute("DELETE FROM exemplars WHERE enrolled < ?", (before,)).rowcount
            connection.execute("DELETE FROM recordings WHERE enrolled < ?", (before,))
            if removed:
                _note_removal(connection, revision)
        if removed:
            self._remember_removed(revision, {name for (name,) in old})
        return removed

    def find(self, speaker: str) -> list[Exemplar]:
        """Return the exemplars of a speaker."""
        return list(self._exemplars("WHERE speaker = ?", speaker))

    def recordings(self, speaker: str) -> list[KeptRecording]:
        """Return the recordings of a speaker."""
        query = "SELECT id, speaker, enrolled, audio FROM recordings WHERE speaker = ? ORDER BY enrolled, rowid"
        return [KeptRecording(*row) for row in self._rows(query, speaker)]

    def page(self, after: str, most: int) -> list[Enrolment]:
        """Return the enrolments of up to `most` speakers."""
        names = "SELECT DISTINCT speaker FROM exemplars WHERE speaker > ? ORDER BY speaker LIMIT ?"
        return enrolments_of(self._exemplars(f"WHERE speaker IN ({names})", after, most))

    def without(self, bundles: Sequence[str], after: str, most: int) -> list[tuple[str, bool]]:
        """Return speakers without exemplars of the bundles."""
        query = f"""
            SELECT speaker, count(recording) > 0 FROM exemplars WHERE speaker > ? GROUP BY speaker
            HAVING sum(bundle IN ({", ".join("?" * len(bundles))})) = 0 ORDER BY speaker LIMIT ?
        """  # noqa: S608 (places of values)
        return [(name, bool(recorded)) for name, recorded in self._rows(query, after, *bundles, most)]

    def revision(self) -> int:
        """Return the number of the last change."""
        [(revision,)] = self._rows("SELECT revision FROM state")
        return self._numbered(int(revision))

    def bundle_exemplars(self, bundle: str) -> Iterator[Exemplar]:
        """Yield the exemplars of a bundle."""
        return self._exemplars("WHERE bundle = ?", bundle)

    def changed_since(self, revision: int) -> set[str] | None:
        """Return the speakers that changed."""
        known = revision % (1 << REVISION_BITS)
        [(now, floor, count)] = self._rows(
            "SELECT revision, (SELECT min(revision) FROM removals), (SELECT count(*) FROM removals) FROM state"
        )
        removals = [number for (number,) in self._rows("SELECT revision FROM removals WHERE revision > ?", known)]
        names = {name for (name,) in self._rows("SELECT DISTINCT speaker FROM exemplars WHERE changed > ?", known)}
        if revision != self._numbered(known) or known > now or (count == MAX_REMOVALS and known < floor):
            return None
        for number in removals:
            removed = self._removed.get(self._numbered(number))
            if removed is None:
                return None
            names |= removed
        return names

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _numbered(self, revision: int) -> int:
        """Return a revision of the file as one of the store."""
        return (self._file.generation << REVISION_BITS) + revision

    def _remember_removed(self, revision: int, speakers: set[str]) -> None:
        """Remember the names of a committed removal; another change may have the revision of one that failed."""
        self._removed[self._numbered(revision)] = speakers
        while len(self._removed) > MAX_REMOVALS:
            del self._removed[next(iter(self._removed))]

    def _exemplars(self, where: str, *values: str | int) -> Iterator[Exemplar]:
        query = f"SELECT {COLUMNS} FROM exemplars {where} ORDER BY speaker, variant, version, bundle, id"  # noqa: S608 (ours)
        for row in self._rows(query, *values):
            exemplar = exemplar_of(row)
            if exemplar is not None:
                yield exemplar

    def _rows(self, query: str, *values: str | int) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query; errors as for `SpeakerStore`."""
        connection = self._file.current("nothing was read")
        try:
            yield from connection.execute(query, values)
        except sqlite3.Error as error:
            raise refusal(error, "nothing was read") from error


def _note_removal(connection: sqlite3.Connection, revision: int) -> None:
    connection.execute("INSERT INTO removals VALUES (?)", (revision,))
    connection.execute(
        "DELETE FROM removals WHERE revision NOT IN (SELECT revision FROM removals ORDER BY revision DESC LIMIT ?)",
        (MAX_REMOVALS,),
    )


def _advance(connection: sqlite3.Connection) -> int:
    """Return the revision of the change in progress."""
    [(revision,)] = connection.execute("UPDATE state SET revision = revision + 1 RETURNING revision").fetchall()
    return int(revision)
