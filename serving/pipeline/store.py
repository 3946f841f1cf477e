"""Enrolled speakers: embeddings in one SQLite file, without audio.

Every change is one transaction, synced to the disk before the call is answered, so that the file stays intact if the
process or the machine stops. An embedding is stored with the digest of the bundle that made it, as embeddings of two
networks cannot be compared. Removed data is overwritten in the file.

A file that was replaced under the running server, by a rename or by writing over it, is opened again before the next
operation; one that is gone or is no store is reported as unavailable. Nothing is answered from the file before it.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.errors import (
    FailedPreconditionError,
    Reason,
    RequestError,
    ResourceExhaustedError,
    StartupError,
    UnavailableError,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
# "SpkL": distinguishes the file from other programs' databases.
APPLICATION = 0x53706B4C
# How long to wait for another server that writes to the same file.
BUSY_SECONDS = 5.0
# The wire contract's largest number (int32).
MAX_NUMBER = 2**31 - 1

# With row ids: WITHOUT ROWID, an entry above a quarter of a page would take an overflow page of its own.
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
    """A speaker's reference for one bundle.

    Attributes:
        speaker: canonical name.
        variant: of the bundle.
        version: of the bundle.
        bundle: SHA-256 of its bundle.json.
        utterances: number of utterances.
        enrolled: time in UTC, ISO 8601.
        embedding: mean of the utterances' length-normalised embeddings, float32 [size]; [0] where it is damaged.
    """

    speaker: str
    variant: str
    version: int
    bundle: str
    utterances: int
    enrolled: str
    embedding: NDArray[np.float32]


class SpeakerStore:
    """The file; for one thread at a time.

    Args:
        path: the file, created if missing.

    Raises:
        StartupError: the file is not a speaker store, has another schema version, is damaged, or is not writable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.touch(0o600)  # who is enrolled is private
            self._connect()
            if not self._tables():
                self._make()
            self._check()
            self._connection.execute("BEGIN IMMEDIATE")  # fails if the file is not writable
            self._connection.execute("ROLLBACK")
            self._seen = self._state()
        except (sqlite3.Error, OSError) as error:
            raise StartupError(f"--speakers {path}: cannot be used: {error}") from error
        except ValueError as error:
            raise StartupError(f"--speakers {path}: {error}") from None

    def _connect(self) -> None:
        """Open the file that is at the path now."""
        # No call but the first creates the file: an empty store in place of a lost one would go unnoticed.
        address = f"file:{quote(str(self._path.absolute()))}?mode=rw"
        self._connection = sqlite3.connect(
            address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._connection.text_factory = _text
        # DELETE: a journal exists during a change only. EXTRA syncs the journal's folder as well.
        for setting in ("journal_mode = DELETE", "synchronous = EXTRA", "secure_delete = ON", "trusted_schema = OFF"):
            self._connection.execute(f"PRAGMA {setting}")

    def _tables(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])

    def _check(self, whole: bool = True) -> None:
        """Check that the open file is a store; `whole` also checks that it is not damaged.

        Raises:
            ValueError: it is something else; says what.
        """
        if not self._tables():
            raise ValueError("empty")
        application, version = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if application != APPLICATION:
            raise ValueError("a database of another program; name a file of its own for the speakers")
        if version != SCHEMA_VERSION:
            raise ValueError(f"has schema version {version}, this server reads and writes {SCHEMA_VERSION}")
        state = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0] if whole else "ok"
        if state != "ok":
            raise ValueError(f"damaged: {state}")

    def _state(self) -> tuple[int, ...]:
        """Return what changes when the file is replaced or written: device, inode, size, time of the last change."""
        found = self._path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _current(self, done: str) -> sqlite3.Connection:
        """Return a connection to the file that is at the path now.

        Raises:
            UnavailableError: it is gone, or is no store.
        """
        try:
            state = self._state()
            if state != self._seen:
                self._reopen(state)
        except FileNotFoundError:
            raise UnavailableError(Reason.STORE, f"the speakers' file is gone from its place; {done}") from None
        except (OSError, sqlite3.Error) as error:
            raise UnavailableError(
                Reason.STORE, f"the speakers' file cannot be read again ({error}); {done}"
            ) from error
        except ValueError as error:
            raise UnavailableError(Reason.STORE, f"the speakers' file is another one: {error}; {done}") from None
        return self._connection

    def _reopen(self, state: tuple[int, ...]) -> None:
        """Open the file again. Where only its content changed, SQLite's cache might hide that it was written over."""
        before = self._connection
        before.execute("SELECT 1")  # raises if the store was closed
        replaced = state[:2] != self._seen[:2]
        try:
            self._connect()
            self._check(whole=replaced)
        except (ValueError, OSError, sqlite3.Error):
            if self._connection is not before:
                self._connection.close()
            self._connection = before
            raise
        before.close()
        self._seen = state
        if replaced:
            log.warning("--speakers %s: replaced while the server runs; its new content is used", self._path)

    def _make(self) -> None:
        try:
            self._connection.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            if "already exists" not in str(error):
                raise
            self._connection.execute("ROLLBACK")  # another server was faster

    def put(self, enrolments: Sequence[Enrolment]) -> None:
        """Replace all enrolments of a speaker by these, atomically.

        Raises:
            ResourceExhaustedError: the disk is full.
            UnavailableError: the file cannot be written.
        """
        rows = [
            (e.speaker, e.variant, e.version, e.bundle, e.utterances, e.embedding.astype("<f4").tobytes(), e.enrolled)
            for e in enrolments
        ]
        with self._change() as connection:
            connection.execute("DELETE FROM enrolments WHERE speaker = ?", (enrolments[0].speaker,))
            connection.executemany("INSERT INTO enrolments VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def remove(self, speaker: str) -> bool:
        """Remove a speaker; return whether it was enrolled.

        Raises:
            ResourceExhaustedError: the disk is full.
            UnavailableError: the file cannot be written.
        """
        with self._change() as connection:
            return connection.execute("DELETE FROM enrolments WHERE speaker = ?", (speaker,)).rowcount > 0

    def find(self, speaker: str) -> list[Enrolment]:
        """Return the enrolments of a speaker, by variant and version.

        Raises:
            UnavailableError: the file cannot be read.
        """
        return self._read("WHERE speaker = ?", speaker)

    def page(self, after: str, most: int) -> list[Enrolment]:
        """Return the enrolments of up to `most` speakers whose names come after `after`; errors as for `find`."""
        names = "SELECT DISTINCT speaker FROM enrolments WHERE speaker > ? ORDER BY speaker LIMIT ?"
        return self._read(f"WHERE speaker IN ({names})", after, most)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _read(self, where: str, *values: str | int) -> list[Enrolment]:
        query = f"SELECT * FROM enrolments {where} ORDER BY speaker, variant, version"  # noqa: S608 (ours)
        connection = self._current("nothing was read")
        try:
            rows = connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _refusal(error, "nothing was read") from error
        return [enrolment for row in rows if (enrolment := _enrolment(row)) is not None]

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        connection = self._current("nothing was changed")
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
                self._note_change()
            except BaseException:
                # SQLite rolls back by itself after the worst errors.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _refusal(error, "nothing was changed") from error

    def _note_change(self) -> None:
        """Note the file's state after a change by this server.

        Raises:
            UnavailableError: the file was replaced during the change, which went into the one before.
        """
        with suppress(FileNotFoundError):
            state = self._state()
            if state[:2] == self._seen[:2]:
                self._seen = state
                return
        raise UnavailableError(Reason.STORE, "the speakers' file was replaced during the change; repeat the call")


class AsyncSpeakerStore:
    """The store on a thread of its own, so that the event loop does not wait for the disk.

    Args:
        path: of the store; None for a server without one.

    Raises:
        StartupError: the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._store = None if path is None else SpeakerStore(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="speakers")

    def check(self) -> None:
        """Check that there is a store.

        Raises:
            FailedPreconditionError: the server has none.
        """
        if self._store is None:
            raise FailedPreconditionError(
                Reason.NO_STORE, "this server keeps no speakers; start it with --speakers FILE to enrol and list them"
            )

    async def run(self, function: Callable[[SpeakerStore], T]) -> T:
        """Return the result of a function of the store; a change that has begun is finished if the call is cancelled.

        Raises:
            FailedPreconditionError: the server has no store.
            RequestError: from the store.
        """
        self.check()
        assert self._store is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, self._store)

    def close(self) -> None:
        """Close the file once the work in progress is done, without waiting for that."""
        if self._store is not None:
            self._thread.submit(self._store.close)
        self._thread.shutdown(wait=False)


def _enrolment(row: tuple[Any, ...]) -> Enrolment | None:
    """Return a row as a value; None where its columns, which SQLite does not check, are not of their kinds."""
    speaker, variant, version, bundle, utterances, embedding, enrolled = row
    texts = all(isinstance(each, str) for each in (speaker, variant, bundle, enrolled))
    numbers = all(isinstance(each, int) and 0 < each <= MAX_NUMBER for each in (version, utterances))
    if not texts or not numbers:
        log.error("the speakers' file has a row that no server wrote, it is left out")
        return None
    return Enrolment(speaker, variant, version, bundle, utterances, enrolled, _embedding(embedding))


def _text(content: bytes) -> str | bytes:
    """Return a stored text; as it is where it is no UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _embedding(content: object) -> NDArray[np.float32]:
    """Return a stored embedding; an empty one where it is damaged."""
    if isinstance(content, bytes) and len(content) % 4 == 0:
        values = np.frombuffer(content, "<f4")
        if np.isfinite(values).all():
            return values
    return np.zeros(0, np.float32)


def _refusal(error: sqlite3.Error, done: str) -> RequestError:
    """Return the client's error for an error of the file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return ResourceExhaustedError(Reason.STORE, f"the disk of the speakers' file is full; {done}")
    return UnavailableError(Reason.STORE, f"the speakers' file cannot be used now ({error}); {done}")
