"""Enrolled speakers in a PostgreSQL database, which several servers share; thread-safe.

The tables lie in the schema `speakerlens`. A change takes the next revision from the row of `state`, which also puts
changes into one order: a revision that a server has read covers all changes up to it.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict

from speakerlens.serving.errors import Reason, ResourceExhaustedError, StartupError, UnavailableError
from speakerlens.serving.gallery.exemplar import (
    COLUMNS,
    Enrolment,
    Exemplar,
    KeptRecording,
    enrolments_of,
    exemplar_of,
    row_of,
)
from speakerlens.serving.gallery.postgres_schema import SchemaError, upgrade

T = TypeVar("T")

log = logging.getLogger(__name__)

CONNECTIONS: Final = 4
# How long a call waits for a connection, and how long after that others are refused at once.
WAIT_SECONDS, REFUSE_SECONDS = 2.0, 1.0
SETTINGS: Final = (
    "SET search_path = speakerlens",
    "SET synchronous_commit = on",
    "SET statement_timeout = '20s'",
    "SET idle_in_transaction_session_timeout = '60s'",
)
# For how long the name of a removed speaker is kept, so that other servers learn of it; one that has not asked for
# longer reads everything again.
REMOVALS_KEPT: Final = "1 hour"
ROWS_AT_ONCE: Final = 2000
ADD: Final = f"INSERT INTO exemplars ({COLUMNS}, changed) VALUES ({'%s, ' * 13}%s)"  # noqa: S608 (ours)
ATTACH: Final = f"""
INSERT INTO exemplars ({COLUMNS}, changed) SELECT {"%s, " * 13}%s
WHERE EXISTS (SELECT FROM recordings WHERE id = %s) ON CONFLICT DO NOTHING
"""  # noqa: S608 (ours)
SELECT: Final = f"SELECT {COLUMNS} FROM exemplars"  # noqa: S608 (ours)
ORDER: Final = "ORDER BY speaker, variant, version, bundle, id"


class PostgresStore:
    """A store in a database; see `SpeakerStore` for what its methods do.

    A database that cannot be reached is no error at the start: the calls that need it are refused until it can be.

    Args:
        address: a URL, postgresql://…, without a password.

    Raises:
        StartupError: the address is not valid, or the database is not one for this server.
    """

    kind = "postgres"
    threads = CONNECTIONS

    def __init__(self, address: str) -> None:
        self._pool = psycopg_pool.ConnectionPool(
            _checked(address),
            kwargs={
                "autocommit": True,
                "connect_timeout": 2,
                "tcp_user_timeout": 5000,
                "application_name": "speakerlens",
            },
            min_size=1,
            max_size=CONNECTIONS,
            timeout=WAIT_SECONDS,
            # A later request for a connection begins again; with more time the pause before an attempt would grow.
            reconnect_timeout=1.0,
            configure=_configure,
            check=psycopg_pool.ConnectionPool.check_connection,
            name="speakers",
            open=True,
        )
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # it would repeat what is logged here
        self._upgraded = False
        self._away_since: float | None = None
        self._refused_until = 0.0
        try:
            self.revision()
        except UnavailableError as error:
            if isinstance(error.__cause__, SchemaError):
                self.close()
                raise StartupError(f"--speakers: {error.__cause__}") from None
            log.warning("--speakers: the database cannot be used; calls that need it are refused until it can be")

    def enroll(self, exemplars: Sequence[Exemplar], recordings: Sequence[KeptRecording] = (), *, replace: bool) -> None:
        """Add exemplars."""
        with self._change() as (cursor, revision):
            if replace:
                names = list({each.speaker for each in exemplars})
                cursor.execute("DELETE FROM exemplars WHERE speaker = ANY(%s)", (names,))
                cursor.execute("DELETE FROM recordings WHERE speaker = ANY(%s)", (names,))
            cursor.executemany(
                "INSERT INTO recordings (id, speaker, enrolled, audio) VALUES (%s, %s, %s, %s)",
                [(each.id, each.speaker, each.enrolled, each.audio) for each in recordings],
            )
            cursor.executemany(ADD, [(*row_of(each), revision) for each in exemplars])

    def attach(self, exemplars: Sequence[Exemplar]) -> int:
        """Add exemplars of recordings that are still kept."""
        added = 0
        with self._change() as (cursor, revision):
            for each in exemplars:
                added += cursor.execute(ATTACH, (*row_of(each), revision, each.recording)).rowcount
        return added

    def remove(self, speaker: str) -> bool:
        """Remove a speaker."""
        with self._change() as (cursor, revision):
            removed = cursor.execute("DELETE FROM exemplars WHERE speaker = %s", (speaker,)).rowcount > 0
            cursor.execute("DELETE FROM recordings WHERE speaker = %s", (speaker,))
            if removed:
                cursor.execute("INSERT INTO removals (revision, speaker) VALUES (%s, %s)", (revision, speaker))
        return removed

    def forget(self, before: str) -> int:
        """Remove old exemplars and recordings."""
        with self._change() as (cursor, revision):
            cursor.execute(
                "INSERT INTO removals (revision, speaker) SELECT DISTINCT %s::bigint, speaker FROM exemplars "
                "WHERE enrolled < %s",
                (revision, before),
            )
            removed = cursor.execute("DELETE FROM exemplars WHERE enrolled < %s", (before,)).rowcount
            cursor.execute("DELETE FROM recordings WHERE enrolled < %s", (before,))
        return removed

    def find(self, speaker: str) -> list[Exemplar]:
        """Return the exemplars of a speaker."""
        return _exemplars(self._rows(f"{SELECT} WHERE speaker = %s {ORDER}", speaker))

    def recordings(self, speaker: str) -> list[KeptRecording]:
        """Return the recordings of a speaker."""
        query = "SELECT id, speaker, enrolled, audio FROM recordings WHERE speaker = %s ORDER BY enrolled, number"
        return [KeptRecording(*row) for row in self._rows(query, speaker)]

    def page(self, after: str, most: int) -> list[Enrolment]:
        """Return the enrolments of up to `most` speakers."""
        names = "SELECT DISTINCT speaker FROM exemplars WHERE speaker > %s ORDER BY speaker LIMIT %s"
        return enrolments_of(self._streamed(f"{SELECT} WHERE speaker IN ({names}) {ORDER}", after, most))

    def without(self, bundles: Sequence[str], after: str, most: int) -> list[tuple[str, bool]]:
        """Return speakers without exemplars of the bundles."""
        return [
            (name, recorded)
            for name, recorded in self._rows(
                "SELECT speaker, count(recording) > 0 FROM exemplars WHERE speaker > %s GROUP BY speaker "
                "HAVING count(*) FILTER (WHERE bundle = ANY(%s)) = 0 ORDER BY speaker LIMIT %s",
                after,
                list(bundles),
                most,
            )
        ]

    def revision(self) -> int:
        """Return the number of the last change."""
        [(revision,)] = self._rows("SELECT revision FROM state")
        return int(revision)

    def bundle_exemplars(self, bundle: str) -> Iterator[Exemplar]:
        """Yield the exemplars of a bundle."""
        return self._streamed(f"{SELECT} WHERE bundle = %s {ORDER}", bundle)

    def changed_since(self, revision: int) -> set[str] | None:
        """Return the speakers that changed."""
        rows = self._rows(
            "SELECT NULL, revision, forgotten FROM state "
            "UNION ALL SELECT speaker, NULL, NULL FROM exemplars WHERE changed > %s "
            "UNION ALL SELECT speaker, NULL, NULL FROM removals WHERE revision > %s",
            revision,
            revision,
        )
        [(now, forgotten)] = [(now, forgotten) for name, now, forgotten in rows if name is None]
        if not forgotten <= revision <= now:
            return None
        return {name for name, *_ in rows if name is not None}

    def close(self) -> None:
        """Close the connections."""
        self._pool.close(timeout=WAIT_SECONDS)

    @contextmanager
    def _change(self) -> Iterator[tuple[psycopg.Cursor[Any], int]]:
        """Enter a transaction with the next revision; it is committed at the end of the block."""
        with self._connection("nothing was changed") as connection:
            committing = False
            try:
                with connection.transaction(), connection.cursor() as cursor:
                    [revision] = cursor.execute(
                        "UPDATE state SET revision = revision + 1 RETURNING revision"
                    ).fetchall()[0]
                    yield cursor, int(revision)
                    cursor.execute(
                        "WITH old AS (DELETE FROM removals WHERE removed < now() - %s::interval RETURNING revision) "
                        "UPDATE state SET forgotten = greatest(forgotten, (SELECT max(revision) FROM old))",
                        (REMOVALS_KEPT,),
                    )
                    committing = True
            except psycopg.OperationalError as error:
                if committing and connection.closed:
                    self._note_away(str(error))
                    raise UnavailableError(
                        Reason.STORE,
                        "the speakers' database went away during the change, which may or may not be done; list the "
                        "speakers before you repeat it",
                    ) from error
                raise

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._connection("nothing was read") as connection:
            return connection.execute(query.encode(), values, binary=True).fetchall()

    def _streamed(self, query: str, *values: object) -> Iterator[Exemplar]:
        """Yield exemplars of a query, of which a few are in memory at a time."""
        with (
            self._connection("nothing was read") as connection,
            connection.transaction(),
            connection.cursor(name="exemplars", binary=True) as cursor,
        ):
            cursor.itersize = ROWS_AT_ONCE
            cursor.execute(query.encode(), values)
            for row in cursor:
                exemplar = exemplar_of(row)
                if exemplar is not None:
                    yield exemplar

    @contextmanager
    def _connection(self, done: str) -> Iterator[psycopg.Connection[Any]]:
        """Yield a connection of the pool; `done` ends the messages of errors.

        Raises:
            UnavailableError: the database cannot be used now.
            ResourceExhaustedError: its disk is full.
        """
        if time.monotonic() < self._refused_until:
            raise self._unavailable(done)
        try:
            with self._pool.connection() as connection:
                if not self._upgraded:
                    upgrade(connection)
                    self._upgraded = True
                yield connection
            self._note_reached()
        except psycopg_pool.PoolTimeout as error:
            self._refused_until = time.monotonic() + REFUSE_SECONDS
            self._note_away("no connection could be made")
            raise self._unavailable(done) from error
        except psycopg.errors.DiskFull as error:
            raise ResourceExhaustedError(Reason.STORE, f"the disk of the speakers' database is full; {done}") from error
        except (psycopg.Error, SchemaError) as error:
            self._note_away(str(error))
            raise self._unavailable(done) from error

    def _note_away(self, why: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.error("the speakers' database cannot be used: %s", why)

    def _note_reached(self) -> None:
        if self._away_since is not None:
            log.info("the speakers' database can be used again, after %.1f s", time.monotonic() - self._away_since)
            self._away_since = None

    @staticmethod
    def _unavailable(done: str) -> UnavailableError:
        """Return the client's error: without the address, which is in the log."""
        return UnavailableError(Reason.STORE, f"the speakers' database cannot be used now; {done}", REFUSE_SECONDS)


def _checked(address: str) -> str:
    """Return an address that is valid and holds no password, which every user of the machine could read.

    Raises:
        StartupError: it is not; says why.
    """
    try:
        parts = conninfo_to_dict(address)
    except psycopg.Error as error:
        raise StartupError(f"--speakers: not a URL of a database: {str(error).strip()}") from None
    if parts.get("password"):
        raise StartupError(
            "--speakers: the URL holds a password; leave it out, and put it into a file that PGPASSFILE names"
        )
    return address


def _configure(connection: psycopg.Connection[Any]) -> None:
    for setting in SETTINGS:
        connection.execute(setting.encode())


def _exemplars(rows: Sequence[tuple[Any, ...]]) -> list[Exemplar]:
    return [exemplar for row in rows if (exemplar := exemplar_of(row)) is not None]
