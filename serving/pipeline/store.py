"""The enrolled speakers: embeddings in one SQLite file, and no audio.

Every change is one transaction, synced to the disk before it is answered, so that the file is whole whenever the
process or the machine stops. An embedding is kept with the digest of the bundle that made it, as those of two networks
cannot be compared. What is removed is overwritten in the file.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.errors import Reason, RequestError, ResourceExhaustedError, StartupError, UnavailableError

SCHEMA_VERSION = 1
# "SpkL": tells the file from other programs' databases.
APPLICATION = 0x53706B4C
# Another server may be writing to the same file.
BUSY_SECONDS = 5.0

# With row numbers, as an entry of a quarter of a page and more would otherwise take a page of its own beside its place.
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE enrolments (
    speaker TEXT NOT NULL,
    variant TEXT NOT NULL,
    version INTEGER NOT NULL,
    bundle TEXT NOT NULL,         -- SHA-256 of the bundle.json whose network made the embedding
    utterances INTEGER NOT NULL,
    embedding BLOB NOT NULL,      -- little-endian float32: mean of the length-normalised embeddings of the utterances
    enrolled TEXT NOT NULL,       -- UTC, ISO 8601
    PRIMARY KEY (speaker, variant, version)
);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


@dataclass(frozen=True, eq=False)
class Enrolment:
    """One speaker's reference for one bundle: the mean of `utterances` length-normalised embeddings, float32 [size]."""

    speaker: str
    variant: str
    version: int
    bundle: str
    utterances: int
    enrolled: str
    embedding: NDArray[np.float32]


class SpeakerStore:
    """The file; used by one thread at a time.

    Args:
        path: the file, made if it is not there.

    Raises:
        StartupError: it is no store of speakers, of another schema version, damaged, or not to be written to.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.touch(0o600)  # whose voices are known is nobody else's business
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._open()
        except (sqlite3.Error, OSError) as error:
            raise StartupError(f"--speakers {path}: cannot be used: {error}") from error
        except ValueError as error:
            raise StartupError(f"--speakers {path}: {error}") from None

    def _open(self) -> None:
        """Checks what is there, or makes it.

        Raises:
            ValueError: it is something else; says what.
        """
        # One file: a journal lies beside it during a change only. EXTRA syncs the journal's folder as well.
        for setting in ("journal_mode = DELETE", "synchronous = EXTRA", "secure_delete = ON", "trusted_schema = OFF"):
            self._connection.execute(f"PRAGMA {setting}")
        if not self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            self._make()
        application, version = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if application != APPLICATION:
            raise ValueError("a database of another program; name a file of its own for the speakers")
        if version != SCHEMA_VERSION:
            raise ValueError(f"has schema version {version}, this server reads and writes {SCHEMA_VERSION}")
        state = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if state != "ok":
            raise ValueError(f"damaged: {state}")
        self._connection.execute("BEGIN IMMEDIATE")  # fails where it cannot be written to
        self._connection.execute("ROLLBACK")

    def _make(self) -> None:
        try:
            self._connection.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            if "already exists" not in str(error):
                raise
            self._connection.execute("ROLLBACK")  # another server was faster

    def put(self, enrolments: Sequence[Enrolment]) -> None:
        """Stores a speaker in the place of one of that name, whatever that was enrolled with; all or nothing.

        Raises:
            ResourceExhaustedError: the disk is full.
            UnavailableError: the file cannot be written to.
        """
        rows = [
            (e.speaker, e.variant, e.version, e.bundle, e.utterances, e.embedding.astype("<f4").tobytes(), e.enrolled)
            for e in enrolments
        ]
        with self._change() as connection:
            connection.execute("DELETE FROM enrolments WHERE speaker = ?", (enrolments[0].speaker,))
            connection.executemany("INSERT INTO enrolments VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def remove(self, speaker: str) -> bool:
        """Forgets a speaker; whether there was one of that name.

        Raises:
            ResourceExhaustedError: the disk is full.
            UnavailableError: the file cannot be written to.
        """
        with self._change() as connection:
            return connection.execute("DELETE FROM enrolments WHERE speaker = ?", (speaker,)).rowcount > 0

    def find(self, speaker: str) -> list[Enrolment]:
        """What is stored of a speaker, by variant and version.

        Raises:
            UnavailableError: the file cannot be read.
        """
        return self._read("WHERE speaker = ?", speaker)

    def page(self, after: str, most: int) -> list[Enrolment]:
        """What is stored of `most` speakers whose names come after that one; errors as for `find`."""
        names = "SELECT DISTINCT speaker FROM enrolments WHERE speaker > ? ORDER BY speaker LIMIT ?"
        return self._read(f"WHERE speaker IN ({names})", after, most)

    def close(self) -> None:
        """Ends the use of the file."""
        self._connection.close()

    def _read(self, where: str, *values: str | int) -> list[Enrolment]:
        query = f"SELECT * FROM enrolments {where} ORDER BY speaker, variant, version"  # noqa: S608 (ours)
        try:
            rows = self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _refusal(error, "nothing was read") from error
        return [
            Enrolment(speaker, variant, version, bundle, utterances, enrolled, np.frombuffer(embedding, "<f4"))
            for speaker, variant, version, bundle, utterances, embedding, enrolled in rows
        ]

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # SQLite rolls back by itself after the worst errors.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _refusal(error, "nothing was changed") from error


def _refusal(error: sqlite3.Error, done: str) -> RequestError:
    """What the caller is told of an error of the file's."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return ResourceExhaustedError(Reason.STORE, f"the disk of the speakers' file is full; {done}")
    return UnavailableError(Reason.STORE, f"the speakers' file cannot be used now ({error}); {done}")
