"""The SQLite file of the enrolled speakers: opened, checked, brought to the present schema, opened again.

Every change is one transaction, synced to the disk before the call is answered, so that the file stays intact if the
process or the machine stops. Removed data is overwritten in the file.

A file that was replaced under the running server, by a rename or by writing over it, is opened again before the next
operation; one that is gone or is no store is reported as unavailable. Nothing is answered from the file before it.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np

from speakerlens.serving.errors import (
    Reason,
    RequestError,
    ResourceExhaustedError,
    StartupError,
    UnavailableError,
)
from speakerlens.serving.gallery.exemplar import unit

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
# "SpkL": distinguishes the file from other programs' databases.
APPLICATION = 0x53706B4C
# How long to wait for another server that writes to the same file.
BUSY_SECONDS = 5.0

# With row ids: WITHOUT ROWID, an entry above a quarter of a page would take an overflow page of its own.
TABLES = f"""
CREATE TABLE exemplars (
    id INTEGER PRIMARY KEY,
    speaker TEXT NOT NULL,
    variant TEXT NOT NULL,
    version INTEGER NOT NULL,
    bundle TEXT NOT NULL,         -- SHA-256 of the bundle.json whose network made the embedding
    utterances INTEGER NOT NULL,  -- 1, or more where the embedding is a mean of several, as schema 1 had it
    enrolled TEXT NOT NULL,       -- UTC, ISO 8601
    embedding BLOB NOT NULL,      -- little-endian float32, of length one
    speech_s REAL, snr_db REAL, bandwidth_hz REAL, clipping REAL, level_db REAL,
    recording TEXT,               -- id of the kept recording
    changed INTEGER NOT NULL      -- revision that wrote the row
);
CREATE INDEX exemplars_by_speaker ON exemplars (speaker);
CREATE INDEX exemplars_by_change ON exemplars (changed);
CREATE UNIQUE INDEX exemplars_by_recording ON exemplars (recording, bundle) WHERE recording IS NOT NULL;
CREATE TABLE recordings (
    id TEXT PRIMARY KEY,
    speaker TEXT NOT NULL,
    enrolled TEXT NOT NULL,
    audio BLOB NOT NULL           -- FLAC, mono at 16 kHz
);
CREATE INDEX recordings_by_speaker ON recordings (speaker);
CREATE TABLE removals (revision INTEGER PRIMARY KEY);
CREATE TABLE state (revision INTEGER NOT NULL);
INSERT INTO state VALUES (1);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA_VERSION};
"""  # noqa: S608 - constants
OLD_ROW = """
INSERT INTO exemplars (speaker, variant, version, bundle, utterances, enrolled, embedding, changed)
VALUES (?, ?, ?, ?, ?, ?, ?, 1)
"""
SCHEMA = f"BEGIN IMMEDIATE;\n{TABLES}COMMIT;\n"


class SpeakerFile:
    """The open file; for one thread at a time.

    Args:
        path: the file, created if missing.

    Attributes:
        generation: grows each time the file was replaced.

    Raises:
        StartupError: the file is not a speaker store, has another schema version, is damaged, or is not writable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.generation = 0
        try:
            path.touch(0o600)  # the names of enrolled speakers are private
            self._connect()
            if not self._tables():
                self._make()
            self._check()
            self._upgrade()
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
        if not 1 <= version <= SCHEMA_VERSION:
            raise ValueError(f"has schema version {version}, this server reads 1 to {SCHEMA_VERSION}")
        state = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0] if whole else "ok"
        if state != "ok":
            raise ValueError(f"damaged: {state}")

    def _state(self) -> tuple[int, ...]:
        """Return what changes when the file is replaced or written: device, inode, size, time of the last change."""
        found = self._path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def current(self, done: str) -> sqlite3.Connection:
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
            if self._upgrade():
                state = self._state()
        except (ValueError, OSError, sqlite3.Error):
            if self._connection is not before:
                self._connection.close()
            self._connection = before
            raise
        before.close()
        self._seen = state
        if replaced:
            self.generation += 1
            log.warning("--speakers %s: replaced while the server runs; its new content is used", self._path)

    def _make(self) -> None:
        try:
            self._connection.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            if "already exists" not in str(error):
                raise
            self._connection.execute("ROLLBACK")  # another server was faster

    def _upgrade(self) -> bool:
        """Bring a file of schema 1 to the present schema, in one transaction; return whether it was one.

        Schema 1 held the mean of a speaker's utterances for each bundle; it becomes one exemplar.
        """
        connection = self._connection
        if _version(connection) == SCHEMA_VERSION:
            return False
        connection.execute("BEGIN IMMEDIATE")
        try:
            if _version(connection) != SCHEMA_VERSION:  # no other server was faster
                for statement in TABLES.split(";\n"):
                    connection.execute(statement)
                for *key, embedding, enrolled in connection.execute("SELECT * FROM enrolments").fetchall():
                    row = (*key, enrolled, _directed(embedding))
                    connection.execute(OLD_ROW, row)
                connection.execute("DROP TABLE enrolments")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        log.info("--speakers %s: brought from schema 1 to %d", self._path, SCHEMA_VERSION)
        return True

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Enter a transaction; it is committed at the end of the block.

        Raises:
            ResourceExhaustedError: the disk is full.
            UnavailableError: the file cannot be written.
        """
        connection = self.current("nothing was changed")
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
            raise refusal(error, "nothing was changed") from error

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


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _directed(content: object) -> object:
    """Return a stored mean embedding at length one; unchanged where it is damaged."""
    if not isinstance(content, bytes) or len(content) % 4:
        return content
    values = np.frombuffer(content, "<f4")
    return unit(values).tobytes() if np.isfinite(values).all() else content


def _text(content: bytes) -> str | bytes:
    """Return a stored text; the bytes where they are not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def refusal(error: sqlite3.Error, done: str) -> RequestError:
    """Return the client's error for an error of the file."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return ResourceExhaustedError(Reason.STORE, f"the disk of the speakers' file is full; {done}")
    return UnavailableError(Reason.STORE, f"the speakers' file cannot be used now ({error}); {done}")
