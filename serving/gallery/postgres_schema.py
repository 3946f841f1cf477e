"""The tables of the speakers' database, and how they are brought to the present schema."""

from typing import Any, Final

import psycopg

# Statements that bring the schema from one version to the next; the first make version 1.
MIGRATIONS: Final = (
    """
    CREATE TABLE exemplars (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        speaker text COLLATE "C" NOT NULL,
        variant text COLLATE "C" NOT NULL,
        version integer NOT NULL,
        bundle text COLLATE "C" NOT NULL,
        utterances integer NOT NULL,
        enrolled text COLLATE "C" NOT NULL,
        embedding bytea NOT NULL,
        speech_s double precision,
        snr_db double precision,
        bandwidth_hz double precision,
        clipping double precision,
        level_db double precision,
        recording text COLLATE "C",
        changed bigint NOT NULL
    );
    CREATE INDEX exemplars_by_speaker ON exemplars (speaker);
    CREATE INDEX exemplars_by_change ON exemplars (changed);
    CREATE UNIQUE INDEX exemplars_by_recording ON exemplars (recording, bundle) WHERE recording IS NOT NULL;
    CREATE TABLE recordings (
        number bigint GENERATED ALWAYS AS IDENTITY,
        id text COLLATE "C" PRIMARY KEY,
        speaker text COLLATE "C" NOT NULL,
        enrolled text COLLATE "C" NOT NULL,
        audio bytea NOT NULL
    );
    CREATE INDEX recordings_by_speaker ON recordings (speaker);
    CREATE TABLE removals (
        revision bigint NOT NULL,
        speaker text COLLATE "C" NOT NULL,
        removed timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE state (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        schema_version integer NOT NULL,
        revision bigint NOT NULL,
        forgotten bigint NOT NULL
    );
    INSERT INTO state (schema_version, revision, forgotten) VALUES (0, 1, 0);
    """,
)
# "SpkL": servers that start together take turns with it.
LOCK: Final = 0x53706B4C


class SchemaError(Exception):
    """The database is not one for this server; the message says why."""


def upgrade(connection: psycopg.Connection[Any]) -> None:
    """Make the tables, or bring them to the present schema, in one transaction.

    Raises:
        SchemaError: a newer server made them, or something else did.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        version = _version(connection)
        if version > len(MIGRATIONS):
            raise SchemaError(
                f"the database has schema version {version}, this server reads and writes {len(MIGRATIONS)}"
            )
        for migration in MIGRATIONS[version:]:
            connection.execute(migration.encode())
        if version < len(MIGRATIONS):
            connection.execute("UPDATE state SET schema_version = %s", (len(MIGRATIONS),))


def _version(connection: psycopg.Connection[Any]) -> int:
    """Return the version of the tables; 0 where there are none."""
    exists = connection.execute("SELECT to_regnamespace('speakerlens') IS NOT NULL").fetchone()
    if exists is None or not exists[0]:
        connection.execute("CREATE SCHEMA speakerlens")
        return 0
    tables = {
        name
        for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'speakerlens'").fetchall()
    }
    if not tables:
        return 0
    if "state" not in tables:
        raise SchemaError("the database has a schema speakerlens of another program")
    [(version,)] = connection.execute("SELECT schema_version FROM state").fetchall()
    return int(version)
